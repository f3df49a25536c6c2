//! What the tests against the double share: connections to it as one of its personas, and runs of the binary.

use std::path::PathBuf;
use std::process::Command;

use runseal::aws::{Cloud, CloudConfig, Credentials, Endpoints, Gate};

use crate::aws_double::{Double, REGION, World};
use crate::program::runseal;

/// Speaks to the double as `persona`, with one attempt for each call.
pub fn cloud(double: &Double, persona: &str) -> Cloud {
    Cloud::connect(&config(double, persona), &Gate::default()).expect("nothing to refuse")
}

/// What connects to the double as `persona`.
pub fn config(double: &Double, persona: &str) -> CloudConfig {
    let (id, credential) = double.credentials(persona);
    let mut config = CloudConfig::new("run-1".parse().expect("a run id"));
    config.endpoints = Endpoints {
        s3: Some(double.s3_endpoint()),
        kms: Some(double.kms_endpoint()),
        sts: Some(double.sts_endpoint()),
    };
    config.region = Some(REGION.to_owned());
    config.credentials = Some(Credentials::new(&id, &credential.secret, credential.token.as_deref()));
    config.attempts = 1;
    config
}

/// A double, and a directory for everything else. What runs there is in `runs` and `audit`.
pub struct Site {
    pub double: Double,
    pub dir: tempfile::TempDir,
}

impl Site {
    /// One whose bucket `inputs` holds these objects.
    pub fn holding<const N: usize>(objects: [(&str, Vec<u8>); N]) -> Self {
        let site = Self { double: Double::start(World::default()), dir: tempfile::tempdir().expect("tempdir") };
        objects.into_iter().for_each(|(key, body)| site.double.put("inputs", key, body));
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary, as persona `runner`.
    pub fn runseal(&self) -> Command {
        let mut command = runseal();
        command.current_dir(self.dir.path()).envs(self.double.environment("runner"));
        command
    }
}
