//! The HTTP client: TLS by rustls and AWS-LC, connections kept open, plain http to this machine only.
//!
//! The guard sits below every service, below the credential chain and below redirects, so no setting leads past it.

use std::net::IpAddr;

use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_http_client::{Builder, Connector};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

use super::classify::configuration;
use crate::aws::{CallError, CloudConfig};
use crate::sys::path::shown;

/// Where the SDK itself fetches credentials by plain http: instance metadata, ECS and EKS agents, all link-local
/// (EC2 User Guide, "Instance metadata"; ECS Developer Guide, "Task IAM role"; EKS User Guide, "Pod Identity").
const METADATA: [&str; 5] = ["169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fd00:ec2::23"];

/// The client for all services of a run.
pub(super) fn client(config: &CloudConfig) -> Result<SharedHttpClient, CallError> {
    let context = TlsContext::builder().with_trust_store(trust()?).build();
    let context = context.map_err(|error| configuration(&error))?;
    let idle = config.concurrency.max(8);
    Ok(SharedHttpClient::new(Guard {
        secure: https(context.clone(), idle, ProxyConfig::from_env()),
        // Never through a proxy: what goes to this machine unencrypted must stay on it.
        plain: https(context, idle, ProxyConfig::disabled()),
    }))
}

fn https(context: TlsContext, idle: usize, proxy: ProxyConfig) -> SharedHttpClient {
    Builder::new().pool_max_idle_per_host(idle).build_with_connector_fn(move |settings, components| {
        let mut connector = Connector::builder().proxy_config(proxy.clone()).pool_max_idle_per_host(idle);
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        connector.tls_provider(Provider::Rustls(CryptoMode::AwsLc)).tls_context(context.clone()).build()
    })
}

/// The certificates of `AWS_CA_BUNDLE`, or else of the system (`SSL_CERT_FILE`, `SSL_CERT_DIR`).
fn trust() -> Result<TrustStore, CallError> {
    let Some(path) = std::env::var_os("AWS_CA_BUNDLE").filter(|path| !path.is_empty()) else {
        return Ok(TrustStore::default());
    };
    let pem = std::fs::read(&path)
        .map_err(|error| configuration(&format!("AWS_CA_BUNDLE: {}: {error}", shown(path.as_ref()))))?;
    Ok(TrustStore::empty().with_pem_certificate(pem))
}

/// Refuses plain http to anywhere but this machine, and URLs that are none.
pub(super) fn check(url: &str) -> Result<(), CallError> {
    let uri: http::Uri =
        url.parse().map_err(|error| configuration(&format!("the endpoint URL {url} cannot be read: {error}")))?;
    refusal(&uri).map_or(Ok(()), |refused| Err(configuration(&refused)))
}

/// Why a request to `uri` is not sent.
fn refusal(uri: &http::Uri) -> Option<String> {
    let host = uri.host().unwrap_or_default();
    match uri.scheme_str() {
        Some("https") => None,
        Some("http") if is_local(host) => None,
        Some("http") => {
            Some(format!("http://{host} is not encrypted: use https (plain http is for servers on this machine only)"))
        }
        _ => Some(format!("the endpoint URL {uri} must begin with https://")),
    }
}

fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    loopback || host.eq_ignore_ascii_case("localhost") || METADATA.contains(&host)
}

#[derive(Debug)]
struct Guard {
    secure: SharedHttpClient,
    plain: SharedHttpClient,
}

impl HttpClient for Guard {
    fn http_connector(&self, settings: &HttpConnectorSettings, components: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(GuardedConnector {
            secure: self.secure.http_connector(settings, components),
            plain: self.plain.http_connector(settings, components),
        })
    }
}

#[derive(Debug)]
struct GuardedConnector {
    secure: SharedHttpConnector,
    plain: SharedHttpConnector,
}

impl HttpConnector for GuardedConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let uri = match request.uri().parse::<http::Uri>() {
            Ok(uri) => uri,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        };
        match refusal(&uri) {
            Some(refused) => HttpConnectorFuture::ready(Err(ConnectorError::user(refused.into()))),
            None if uri.scheme_str() == Some("http") => self.plain.call(request),
            None => self.secure.call(request),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_and_for_the_credentials_of_machines() {
        for url in [
            "https://s3.eu-central-1.amazonaws.com/x",
            "http://127.0.0.1:9000/x",
            "http://[::1]:9000",
            "http://LOCALHOST",
            "http://169.254.169.254/latest/api/token",
            "http://169.254.170.2/v2/credentials",
            "http://[fd00:ec2::254]/",
        ] {
            assert_eq!(refusal(&url.parse().unwrap()), None, "{url}");
        }
        for url in [
            "http://s3.amazonaws.com",
            "http://10.0.0.1",
            "http://169.254.1.1",
            "http://127.0.0.1.example.org",
            "http://localhost.example.org",
            "http://0.0.0.0",
            "ftp://localhost",
            "/only/a/path",
        ] {
            assert!(refusal(&url.parse().unwrap()).is_some(), "{url}");
        }
    }
}
