//! What environment and profile files say. Each test has a process of its own, with that environment and nothing else
//! of AWS, in the directory `/`, as the sealed process of a run.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use runseal::aws::{CallError, Cause, Cloud, CloudConfig, Gate};

use super::wire::{Wire, reply};
use super::{config, target};

const CHILD: &str = "RUNSEAL_TEST_CHILD";

/// Whether this is the process of its own for `test`; if not, it has run there and passed.
pub fn elsewhere(test: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", &format!("sdk::{test}"), "--nocapture", "--test-threads=1"]);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_uppercase();
        if text.starts_with("AWS_") || text.ends_with("_PROXY") || text.starts_with("SSL_CERT") {
            child.env_remove(name);
        }
    }
    let nowhere = ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"].map(|name| (name, "/dev/null"));
    child.envs(nowhere).env("AWS_EC2_METADATA_DISABLED", "true").env(CHILD, "1").envs(variables.iter().copied());
    let output = child.current_dir("/").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}

fn from_environment() -> CloudConfig {
    CloudConfig::new("sdk-test".parse().unwrap())
}

fn refused(config: &CloudConfig) -> CallError {
    let error = Cloud::connect(config, &Gate::default()).err().expect("a refusal");
    assert_eq!(error.cause, Cause::Configuration, "{error}");
    error
}

#[test]
fn without_credentials_it_says_where_it_looked() {
    let variables = [("AWS_REGION", "eu-central-1"), ("AWS_ENDPOINT_URL", "http://127.0.0.1:1")];
    if elsewhere("environment::without_credentials_it_says_where_it_looked", &variables) {
        let cloud = Cloud::connect(&from_environment(), &Gate::default()).unwrap();
        let error = cloud.block_on(cloud.objects().head("data", "key")).unwrap_err();
        assert_eq!((error.operation, error.cause), ("s3:HeadObject", Cause::Credentials), "{error}");
        for source in ["AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "instance metadata"] {
            assert!(error.message.contains(source), "{error}");
        }
    }
}

#[test]
fn without_a_region_it_says_how_to_set_one() {
    if elsewhere("environment::without_a_region_it_says_how_to_set_one", &[("AWS_ACCESS_KEY_ID", "a")]) {
        assert!(refused(&from_environment()).message.contains("AWS_REGION"));
    }
}

#[test]
fn a_profile_gives_region_credentials_and_endpoints() {
    let wire = Wire::saying(vec![reply(200, &[("content-length", "5")], b"")]);
    let url = wire.url();
    let files = tempfile::tempdir().unwrap();
    let settings = format!(
        "[profile lab]\nregion = eu-north-1\nservices = here\n[services here]\ns3 =\n  endpoint_url = {url}\n\
         kms =\n  endpoint_url = {url}\n"
    );
    let (config_file, credentials) = (write(&files, "config", &settings), write(&files, "credentials", LAB));
    let variables = [
        ("AWS_PROFILE", "lab"),
        ("AWS_CONFIG_FILE", config_file.as_str()),
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.as_str()),
    ];
    if elsewhere("environment::a_profile_gives_region_credentials_and_endpoints", &variables) {
        let cloud = Cloud::connect(&from_environment(), &Gate::default()).unwrap();
        assert_eq!(cloud.region, "eu-north-1");
        assert_eq!(cloud.block_on(cloud.objects().head("data", "key")).unwrap().value.size, 5);
        return;
    }
    let sent = wire.requests();
    assert_eq!((sent.len(), sent[0].region()), (1, "eu-north-1"));
    assert!(sent[0].header("authorization").contains("Credential=AKIDOFTHELAB/"));
    assert!(sent[0].line.starts_with("HEAD /data/key"), "path style: {}", sent[0].line);
}

const LAB: &str = "[lab]\naws_access_key_id = AKIDOFTHELAB\naws_secret_access_key = x\n";

fn write(files: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = files.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

// promise: T-36
/// One for each service, and one for all: none may be plain http to another machine.
#[test]
fn endpoints_of_profile_files_are_held_to_https_too() {
    let files = tempfile::tempdir().unwrap();
    let all = "[default]\nregion = eu-north-1\nendpoint_url = http://10.1.2.3\n".to_owned();
    let one = |service| {
        format!(
            "[default]\nregion = eu-north-1\nservices = x\n[services x]\n{service} =\n  endpoint_url = http://10.1.2.3\n"
        )
    };
    for settings in [all, one("s3"), one("kms"), one("sts")] {
        let path = write(&files, "config", &settings);
        if elsewhere("environment::endpoints_of_profile_files_are_held_to_https_too", &[("AWS_CONFIG_FILE", &path)]) {
            let error = refused(&from_environment());
            assert!(error.message.contains("10.1.2.3") && error.message.contains("https"), "{error}");
            return;
        }
    }
}

#[test]
fn fips_and_an_endpoint_url_exclude_each_other() {
    let variables = [
        ("AWS_REGION", "eu-central-1"),
        ("AWS_USE_FIPS_ENDPOINT", "true"),
        ("AWS_ENDPOINT_URL_KMS", "https://kms.example.org"),
    ];
    if elsewhere("environment::fips_and_an_endpoint_url_exclude_each_other", &variables) {
        let error = refused(&from_environment());
        assert!(error.message.contains("FIPS") && error.message.contains("KMS"), "{error}");
        let mut config = from_environment();
        config.fips = Some(false);
        assert!(Cloud::connect(&config, &Gate::default()).is_ok(), "the flag comes before the environment");
    }
}

/// Proxies see what is not encrypted, so that never goes to one.
// promise: T-36
#[test]
fn plain_http_to_this_machine_passes_no_proxy() {
    let wire = Wire::saying(vec![reply(200, &[("content-length", "5")], b"")]);
    let url = wire.url();
    let dead = "http://127.0.0.1:1";
    let variables = [("HTTP_PROXY", dead), ("http_proxy", dead), ("ALL_PROXY", dead), ("WIRE", url.as_str())];
    if elsewhere("environment::plain_http_to_this_machine_passes_no_proxy", &variables) {
        let cloud = Cloud::connect(&config(&std::env::var("WIRE").unwrap()), &Gate::default()).unwrap();
        cloud.block_on(cloud.objects().head("data", "key")).unwrap();
    }
}

#[test]
fn https_goes_through_the_proxy_that_is_set() {
    let proxy = Wire::saying(vec![reply(403, &[], b"")]);
    let url = proxy.url();
    let variables = [("HTTPS_PROXY", url.as_str()), ("AWS_MAX_ATTEMPTS", "1")];
    if elsewhere("environment::https_goes_through_the_proxy_that_is_set", &variables) {
        let mut config = config("https://s3.example.org");
        config.attempts = 1;
        let cloud = Cloud::connect(&config, &Gate::default()).unwrap();
        let error = cloud.block_on(cloud.objects().head("data", "key")).unwrap_err();
        assert_eq!(error.cause, Cause::Unreachable, "{error}");
        return;
    }
    assert_eq!(proxy.requests()[0].line, "CONNECT s3.example.org:443 HTTP/1.1");
}

// promise: T-36
#[test]
fn a_ca_bundle_that_cannot_be_read_is_named() {
    if elsewhere("environment::a_ca_bundle_that_cannot_be_read_is_named", &[("AWS_CA_BUNDLE", "/no/such.pem")]) {
        assert!(refused(&config("https://s3.example.org")).message.contains("/no/such.pem"));
    }
}

/// A server of `openssl s_server` with a certificate for 127.0.0.1; stopped when dropped.
struct Tls {
    server: Child,
    port: u16,
}

impl Tls {
    /// `versions`: options such as `-tls1_2`. Serves what [`certificate`] has put into `home`.
    fn start(home: &Path, versions: &[&str]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Command::new("openssl");
        server.args(["s_server", "-quiet", "-HTTP", "-cert", "leaf.pem", "-key", "leaf.key", "-accept"]);
        // OpenSSL itself no longer offers TLS 1.1 without this.
        server.arg(format!("127.0.0.1:{port}")).args(versions).args(["-cipher", "ALL:@SECLEVEL=0"]);
        server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = server.current_dir(home).spawn().unwrap();
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Self { server, port }
    }

    fn get(&self) -> Result<Vec<u8>, CallError> {
        let mut config = config(&format!("https://127.0.0.1:{}", self.port));
        config.attempts = 1;
        let cloud = Cloud::connect(&config, &Gate::default()).unwrap();
        cloud.block_on(async { super::all(cloud.objects().get("data", "key", None, None).await?.value.1).await })
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

/// A CA (`ca.pem`), a certificate of it for 127.0.0.1, and an answer to `GET /data/key`. False without openssl.
fn certificate(home: &Path) -> bool {
    std::fs::create_dir(home.join(&target("").bucket)).unwrap();
    let answer = reply(200, &[], b"encrypted on its way");
    std::fs::write(home.join("data/key?x-id=GetObject"), answer).unwrap();
    let openssl = |line: &str| {
        let status = Command::new("openssl").args(line.split(' ')).current_dir(home).output();
        status.is_ok_and(|output| output.status.success())
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=ca -days 2",
    ) && openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -out leaf.pem -subj /CN=leaf \
             -days 2 -CA ca.pem -CAkey ca.key -addext basicConstraints=critical,CA:FALSE \
             -addext subjectAltName=IP:127.0.0.1",
    )
}

// promise: T-36
#[test]
fn tls_is_1_2_or_later_and_certificates_are_checked() {
    let test = "environment::tls_is_1_2_or_later_and_certificates_are_checked";
    if std::env::var_os(CHILD).is_none() {
        let home = tempfile::tempdir().unwrap();
        if !certificate(home.path()) {
            eprintln!("SKIP: no openssl that can issue certificates");
            return;
        }
        let (place, bundle) = (home.path().display().to_string(), home.path().join("ca.pem").display().to_string());
        elsewhere(test, &[("TLS_HOME", &place), ("AWS_CA_BUNDLE", &bundle)]);
        elsewhere(test, &[("TLS_HOME", &place), ("STRANGER", "1")]);
        return;
    }
    let home = std::env::var("TLS_HOME").unwrap();
    let home = Path::new(&home);
    if std::env::var_os("STRANGER").is_some() {
        let error = Tls::start(home, &[]).get().unwrap_err();
        assert_eq!(error.cause, Cause::Unreachable, "{error}");
        assert!(error.message.contains("certificate"), "{error}");
        return;
    }
    for version in ["-tls1_2", "-tls1_3"] {
        assert_eq!(Tls::start(home, &[version]).get().unwrap(), b"encrypted on its way", "{version}");
    }
    let error = Tls::start(home, &["-tls1_1"]).get().unwrap_err();
    assert_eq!(error.cause, Cause::Unreachable, "{error}");
    assert!(error.message.contains("ProtocolVersion"), "{error}");
}
