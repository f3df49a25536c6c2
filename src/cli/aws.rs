//! Flags about data and about AWS, shared by `run` and `preflight`.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::spec::{
    AuditDestination, AuditSpec, AwsSpec, DataSpec, InputSpec, KmsKey, Location, Region, RoleArn, Sse, StagingRules,
};

use super::Failure;

/// Heading of these flags in the help.
pub const AWS_HEADING: &str = "Options for AWS";

/// What to stage in, and where results go.
#[derive(Debug, clap::Args)]
pub struct DataArgs {
    /// File, directory, object or prefix to copy in; appears as $RUNSEAL_INPUT/NAME (its last component), or as
    /// $RUNSEAL_INPUT/REL. s3://BUCKET/KEY is one object, or everything below KEY/ if there is no such object; with a
    /// slash at its end it is always a prefix. A key that contains `=` needs =REL
    #[arg(long, value_name = "PATH|S3-URI[=REL]")]
    input: Vec<OsString>,
    /// Directory, or s3://BUCKET/PREFIX/, that receives the results; must be empty or absent unless --overwrite is given
    #[arg(long, value_name = "DIR|S3-URI")]
    output: Option<OsString>,
    /// Let results replace files and objects in the output
    #[arg(long, requires = "output")]
    overwrite: bool,
    /// With --overwrite: keep results of before that this run does not have, as far as runseal published them
    #[arg(long, requires = "overwrite")]
    keep_old: bool,
    /// Copy what a symbolic link leads to where the link would lead nowhere: out of an input, or from the results into
    /// the scratch. In S3, where links cannot be, upload what every link between results leads to
    #[arg(long)]
    dereference: bool,
    /// Let the command leave nothing below $RUNSEAL_OUTPUT; otherwise the run is held, or fails if there is nothing at all
    #[arg(long, requires = "output")]
    allow_empty: bool,
    /// As root: publish even into a directory that other users may change, where they can lead results astray
    #[arg(long, requires = "output")]
    shared_output: bool,
    /// Publish files with set-user-ID and set-group-ID, if they have it; otherwise only the manifest tells
    #[arg(long, requires = "output")]
    keep_set_id: bool,
}

impl DataArgs {
    /// Parses, and makes paths absolute: the sealed process works in `/`.
    pub fn into_data(self) -> Result<DataSpec, Failure> {
        let exists = |path: &Path| path.symlink_metadata().is_ok();
        let input = |text: &OsString| {
            let InputSpec { source, target } = InputSpec::parse(text, exists).map_err(usage)?;
            Ok(InputSpec { source: absolute(source)?, target })
        };
        let inputs = self.input.iter().map(input).collect::<Result<_, Failure>>()?;
        let output = self.output.as_deref().map(output_location).transpose()?;
        let Self { overwrite, keep_old, dereference, allow_empty, shared_output, keep_set_id, .. } = self;
        let rules = StagingRules { dereference, keep_old, allow_empty, shared_output, keep_set_id };
        Ok(DataSpec { inputs, output, overwrite, rules, ..DataSpec::default() })
    }
}

/// What `--output` means; a path becomes absolute.
pub fn output_location(text: &OsStr) -> Result<Location, Failure> {
    let exists = |path: &Path| path.symlink_metadata().is_ok();
    let location = Location::parse_output(text, exists);
    absolute(location.map_err(|error| Failure::Usage(format!("--output: {error}")))?)
}

fn absolute(location: Location) -> Result<Location, Failure> {
    Ok(match location {
        Location::Path(path) => Location::Path(std::path::absolute(path)?),
        remote => remote,
    })
}

/// How to speak to AWS.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = AWS_HEADING)]
pub struct AwsArgs {
    /// Role to take; its session is named after the run
    #[arg(long, value_name = "ARN")]
    role_arn: Option<RoleArn>,
    /// Profile of the AWS configuration files [default: $AWS_PROFILE]
    #[arg(long, value_name = "NAME")]
    aws_profile: Option<String>,
    /// Region [default: $AWS_REGION, or that of the profile]
    #[arg(long, value_name = "NAME")]
    region: Option<Region>,
    /// Use FIPS 140 endpoints
    #[arg(long)]
    fips: bool,
    /// Use endpoints that have IPv6 as well as IPv4
    #[arg(long)]
    dual_stack: bool,
    /// Encryption of results in S3 [default: what the bucket says]
    #[arg(long, value_name = "ALGORITHM", value_enum)]
    sse: Option<Sse>,
    /// KMS key for that: ARN, key id or alias/NAME
    #[arg(long, value_name = "KEY")]
    sse_kms_key_id: Option<KmsKey>,
    /// KMS key that takes part in the key of the run: ARN, key id or alias/NAME
    #[arg(long, value_name = "KEY")]
    run_key_kms: Option<KmsKey>,
    /// Append a line of JSON about every use of AWS and of the run key to FILE, or to the journal
    #[arg(long, value_name = "FILE|journald")]
    audit: Option<OsString>,
    /// Sign every line of it with this Ed25519 key, a file that only its owner may read; `runseal audit keygen` makes one
    #[arg(long, value_name = "KEY-FILE", requires = "audit")]
    audit_sign: Option<PathBuf>,
}

impl AwsArgs {
    /// What the flags say, for a run whose results go to `output`.
    pub fn into_spec(self, output: Option<&Location>) -> Result<(AwsSpec, Option<AuditSpec>), Failure> {
        let aws = AwsSpec {
            role: self.role_arn,
            profile: self.aws_profile,
            region: self.region,
            fips: self.fips,
            dual_stack: self.dual_stack,
            run_key: self.run_key_kms,
            ..AwsSpec::default()
        };
        let aws = aws.with_encryption(self.sse, self.sse_kms_key_id, output).map_err(usage)?;
        let destination = match self.audit.as_deref().map(AuditDestination::from) {
            Some(AuditDestination::File(path)) => Some(AuditDestination::File(std::path::absolute(path)?)),
            other => other,
        };
        let sign = self.audit_sign.map(std::path::absolute).transpose()?;
        Ok((aws, destination.map(|destination| AuditSpec { destination, sign })))
    }
}

fn usage(problem: impl ToString) -> Failure {
    Failure::Usage(problem.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Both {
        #[command(flatten)]
        data: DataArgs,
        #[command(flatten)]
        aws: AwsArgs,
    }

    fn parse(flags: &[&str]) -> Result<(DataSpec, AwsSpec, Option<AuditSpec>), String> {
        let both = Both::try_parse_from([&["x"], flags].concat()).map_err(|error| error.to_string())?;
        let data = both.data.into_data().map_err(|error| error.to_string())?;
        let (aws, audit) = both.aws.into_spec(data.output.as_ref()).map_err(|error| error.to_string())?;
        Ok((data, aws, audit))
    }

    #[test]
    fn paths_become_absolute_and_uris_stay() {
        let (data, ..) = parse(&["--input", "here/x=y", "--input", "s3://bucket/a", "--output", "s3://bucket/out"])
            .expect("both kinds mix");
        let here = std::env::current_dir().expect("somewhere");
        assert_eq!(data.inputs[0].source, Location::Path(here.join("here/x")));
        assert_eq!(data.inputs[1].source.to_string(), "s3://bucket/a");
        assert_eq!(data.output.expect("given").to_string(), "s3://bucket/out/");
        let (_, _, audit) = parse(&["--audit", "trail"]).expect("a file");
        let file = AuditSpec { destination: AuditDestination::File(here.join("trail")), sign: None };
        assert_eq!(audit, Some(file));
        let (_, _, audit) = parse(&["--audit", "journald", "--audit-sign", "key"]).expect("signed");
        assert_eq!(audit, Some(AuditSpec { destination: AuditDestination::Journal, sign: Some(here.join("key")) }));
        assert!(parse(&["--audit-sign", "key"]).is_err());
    }

    #[test]
    fn encryption_is_for_results_in_s3_and_consistent() {
        let key = "alias/results";
        let with = |flags: &[&str]| parse(&[flags, &["--output", "s3://bucket/out/"]].concat()).map(|(_, aws, _)| aws);
        assert_eq!(with(&["--sse-kms-key-id", key]).expect("valid").sse, Some(Sse::Kms));
        assert_eq!(with(&["--sse", "aws:kms:dsse", "--sse-kms-key-id", key]).expect("valid").sse, Some(Sse::KmsDsse));
        assert_eq!(with(&["--sse", "AES256"]).expect("valid").sse, Some(Sse::Aes256));
        assert!(with(&["--sse", "AES256", "--sse-kms-key-id", key]).expect_err("no key").contains("no KMS key"));
        assert!(with(&["--sse", "aes"]).is_err());
        assert!(parse(&["--sse", "aws:kms"]).expect_err("no output").contains("results in S3"));
        assert!(parse(&["--sse", "aws:kms", "--output", "out"]).expect_err("a directory").contains("results in S3"));
    }

    #[test]
    fn names_are_checked() {
        for (flags, word) in [
            (["--role-arn", "run"], "not the ARN of a role"),
            (["--region", "evil.example/"], "not a Region"),
            (["--run-key-kms", "key"], "not a KMS key"),
            (["--input", "gs://bucket/x"], "not known here"),
            (["--output", "s3://Bucket/x"], "lower-case"),
        ] {
            let error = parse(&flags).expect_err("refused");
            assert!(error.contains(word), "{error}");
        }
    }
}
