//! What AWS systems that use a customer's key ask of it, checked for one key.
//!
//! The demands are those of the documents: HealthOmics User Guide ("Encryption at rest"), HealthLake Developer Guide
//! ("Encryption at rest"). Where these contradict themselves, the contradiction is shown as a warning.

use futures_util::future::join4;

use super::keys::defect;
use super::now;
use super::probe::Probe;
use crate::aws::{Answer, CallError, Cause, Cloud, EncryptionContext, Grant, KeyFacts};
use crate::policy;
use crate::preflight::report::{AwsDetails, Check, Code, Evidence, Finding, Outcome, Report};
use crate::spec::Arn;

/// What HealthLake calls the key that it owns itself.
pub const AWS_OWNED: &str = "AWS_OWNED_KMS_KEY";

/// A system, and what it uses the key for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// Inputs and outputs of HealthOmics Workflows, and of runseal
    Workflows,
    /// Sequence and reference stores of HealthOmics
    OmicsStorage,
    /// Variant and annotation stores of HealthOmics
    OmicsAnalytics,
    /// A HealthLake data store
    Healthlake,
    /// The input of a HealthLake import
    HealthlakeImport,
    /// The output of a HealthLake export
    HealthlakeExport,
}

/// What a profile asks for besides a symmetric key that is enabled and may be described.
struct Demands {
    generate: bool,
    decrypt: bool,
    grant: Option<GrantDemand>,
    /// Whether keys managed or owned by AWS will not do.
    customer_managed: bool,
    /// What the documents say and a probe cannot see.
    warnings: &'static [&'static str],
}

struct GrantDemand {
    /// First label of the service's principal.
    service: &'static str,
    operations: &'static [&'static str],
    /// Whether the documents leave no doubt that it is needed.
    required: bool,
}

/// What grants to HealthOmics and to HealthLake allow (their documents on encryption at rest).
const OMICS: &[&str] = &["CreateGrant", "RetireGrant", "Decrypt", "GenerateDataKey"];
const HEALTHLAKE: &[&str] = &[
    "CreateGrant",
    "Decrypt",
    "DescribeKey",
    "Encrypt",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "ReEncryptFrom",
    "ReEncryptTo",
    "RetireGrant",
];

impl Profile {
    fn demands(self) -> Demands {
        let use_it = Demands { generate: true, decrypt: true, grant: None, customer_managed: false, warnings: &[] };
        let grant = |service, operations, required| Some(GrantDemand { service, operations, required });
        match self {
            Self::Workflows => Demands {
                warnings: &[
                    "the one who starts a run and the role of the run both need the keys of inputs and outputs: \
                             check as each of them",
                ],
                ..use_it
            },
            Self::OmicsStorage => Demands {
                grant: grant("omics", OMICS, false),
                customer_managed: true,
                warnings: &[
                    "the documents contradict themselves on grants: CreateGrant is used by \"Omics Analytics and Omics \
                     Storage\", but \"Grants are not required [...] for either Omics Workflows or Omics Storage\"",
                    "the key of a store cannot be changed after it was made",
                ],
                ..use_it
            },
            Self::OmicsAnalytics => Demands {
                grant: grant("omics", OMICS, true),
                customer_managed: true,
                warnings: &[
                    "readers come through Lake Formation, which holds kms:Decrypt itself: the key policy does not limit them",
                    "variant and annotation stores are closed to new customers since 2025-11-07",
                ],
                ..use_it
            },
            Self::Healthlake => Demands {
                grant: grant("healthlake", HEALTHLAKE, true),
                warnings: &[
                    "the key of a data store cannot be changed after it was made",
                    "whoever may kms:RevokeGrant or kms:RetireGrant on the key can cut the data store off: delete the store \
                     instead of its grants",
                ],
                ..use_it
            },
            Self::HealthlakeImport => Demands {
                customer_managed: true,
                warnings: &["the data access role needs these permissions: check as that role"],
                ..use_it
            },
            Self::HealthlakeExport => Demands {
                customer_managed: true,
                warnings: &[
                    "the data access role needs these permissions: check as that role",
                    "KmsKeyId is required in the S3 configuration of an export: the default encryption of the bucket does \
                     not stand in for it",
                ],
                ..use_it
            },
        }
    }
}

/// Checks `key` (an ARN, or [`AWS_OWNED`]) for `profile`. The direct calls decide here, there is no S3 between.
pub fn check_key(key: &str, profile: Profile, cloud: &Cloud) -> Result<Evidence, Report> {
    let demands = profile.demands();
    let mut trial = Trial { key, region: &cloud.region, evidence: Evidence::default(), findings: Vec::new() };
    if key == AWS_OWNED {
        trial.owned_by_aws(&demands);
    } else {
        cloud.block_on(trial.ask(cloud, &demands));
    }
    for warning in demands.warnings {
        trial.note(Probe::Documents, Outcome::Warning, (*warning).to_owned(), "");
    }
    match trial.findings.is_empty() {
        true => Ok(trial.evidence),
        false => Err(Report { findings: trial.findings, evidence: trial.evidence }),
    }
}

struct Trial<'a> {
    key: &'a str,
    region: &'a str,
    evidence: Evidence,
    findings: Vec<Finding>,
}

impl Trial<'_> {
    fn owned_by_aws(&mut self, demands: &Demands) {
        self.note(
            Probe::Nothing,
            Outcome::Unknown,
            "owned by AWS: cannot be seen or checked, and needs no permission".into(),
            "",
        );
        if demands.customer_managed {
            self.fail(
                None,
                "is owned by AWS; this system asks for a customer managed key".into(),
                CUSTOMER.into(),
                None,
            );
        }
    }

    async fn ask(&mut self, cloud: &Cloud, demands: &Demands) {
        let none = EncryptionContext::new();
        self.evidence.identity = cloud.identity().whoami().await.ok().map(|answer| answer.value);
        let facts = self.note_description(cloud.keys().describe(self.key).await, demands);
        if facts.as_ref().is_some_and(|facts| facts.manager == "AWS") {
            let text = "managed by AWS: answers to its service only, so that asking directly would tell nothing";
            self.note(Probe::Generate, Outcome::Unknown, text.to_owned(), "");
            return;
        }
        let region = Arn::parse(self.key).map_or(self.region, |arn| arn.region).to_owned();
        let grant = async {
            let GrantDemand { service, operations, .. } = demands.grant.as_ref()?;
            Some(cloud.keys().try_grant(self.key, &format!("{service}.{region}.amazonaws.com"), operations).await)
        };
        let (generate, decrypt, granted, grants) = join4(
            async { if demands.generate { Some(cloud.keys().try_generate(self.key, &none).await) } else { None } },
            async { if demands.decrypt { Some(cloud.keys().try_decrypt(self.key, &none).await) } else { None } },
            grant,
            async { if demands.grant.is_some() { Some(cloud.keys().grants(self.key).await) } else { None } },
        )
        .await;
        for (probe, tried) in [(Probe::Generate, generate), (Probe::Decrypt, decrypt)] {
            if let Some(tried) = tried {
                self.note_use(probe, tried, true);
            }
        }
        if let Some(tried) = granted {
            self.note_use(Probe::Grant, tried, demands.grant.as_ref().is_some_and(|grant| grant.required));
        }
        if let Some(grants) = grants {
            self.note_grants(grants);
        }
    }

    fn note_description(
        &mut self,
        described: Result<Answer<KeyFacts>, CallError>,
        demands: &Demands,
    ) -> Option<KeyFacts> {
        const PROBE: Probe = Probe::Describe;
        let Answer { value: facts, request_id } = match described {
            Ok(answer) => answer,
            Err(error) => {
                self.note_use(PROBE, Err(error), true);
                return None;
            }
        };
        if let Some(defect) = defect(&facts, now()) {
            self.note(PROBE, Outcome::Failed, defect.problem.clone(), &request_id);
            let cause = if defect.state { Cause::KeyState } else { Cause::KeyKind };
            self.fail(Some(cause), defect.problem, defect.remedy, None);
        } else if demands.customer_managed && facts.manager == "AWS" {
            self.note(PROBE, Outcome::Failed, "managed by AWS".into(), &request_id);
            let problem = "is managed by AWS; this system asks for a customer managed key".to_owned();
            self.fail(Some(Cause::KeyKind), problem, CUSTOMER.into(), None);
        } else {
            let (outcome, text) = super::keys::summary(&facts, now());
            self.note(PROBE, outcome, text, &request_id);
        }
        Some(facts)
    }

    fn note_use(&mut self, probe: Probe, tried: Result<Answer<()>, CallError>, required: bool) {
        let action = probe.operation();
        let error = match tried {
            Ok(answer) => return self.note(probe, Outcome::Passed, "would succeed".into(), &answer.request_id),
            Err(error) => error,
        };
        if !required {
            return self.note(probe, Outcome::Warning, error.to_string(), &error.request_id);
        }
        self.note(probe, Outcome::Failed, error.to_string(), &error.request_id);
        let of_state = matches!(error.cause, Cause::KeyState | Cause::KeyKind);
        if of_state && self.findings.iter().any(|finding| finding.cause() == Some(error.cause)) {
            return;
        }
        let (problem, remedy) = match error.cause {
            Cause::Denied => (
                format!("{action} is denied"),
                format!(
                    "allow {action} on it in the key policy or, if that leaves it to IAM, in the IAM policy of the caller; \
                     a policy that allows it through the service only (kms:ViaService) denies this check and may still do"
                ),
            ),
            Cause::NotFound => {
                ("does not exist in this account and Region".to_owned(), "name the key by its whole ARN".to_owned())
            }
            Cause::KeyState | Cause::KeyKind => {
                (format!("cannot serve {action}"), "see its state and kind with aws kms describe-key".to_owned())
            }
            _ => (format!("{action} could not be tried"), "see the text of AWS".to_owned()),
        };
        self.fail(Some(error.cause), problem, remedy, Some((action, error)));
    }

    fn note_grants(&mut self, grants: Result<Answer<Vec<Grant>>, CallError>) {
        const PROBE: Probe = Probe::Grants;
        match grants {
            Ok(Answer { value, request_id }) if value.is_empty() => {
                self.note(PROBE, Outcome::Passed, "no grants".into(), &request_id);
            }
            Ok(Answer { value, request_id }) => {
                for Grant { id, grantee, operations } in value {
                    let text = format!("grant {id} to {grantee}: {}", operations.join(", "));
                    self.note(PROBE, Outcome::Passed, text, &request_id);
                }
            }
            Err(error) => self.note(PROBE, Outcome::Unknown, error.to_string(), &error.request_id),
        }
    }

    fn note(&mut self, probe: Probe, outcome: Outcome, detail: String, request_id: &str) {
        let (subject, request_id) = (self.key.to_owned(), request_id.to_owned());
        self.evidence.checks.push(Check {
            probe: probe.name(),
            key: Some(subject.clone()),
            subject,
            outcome,
            detail,
            request_id,
        });
    }

    fn fail(
        &mut self,
        cause: Option<Cause>,
        problem: String,
        remedy: String,
        failed: Option<(&'static str, CallError)>,
    ) {
        let identity = self.evidence.identity.as_ref();
        let aws = cause.map(|cause| {
            let (action, error) = failed.map_or((None, None), |(action, error)| (Some(action), Some(error)));
            let denial = error.as_ref().and_then(|error| error.denial.clone()).unwrap_or_default();
            let repair = action.filter(|_| cause == Cause::Denied && !denial.explicit).map(|action| {
                let statement = policy::allow("Key", &[action], vec![self.key.to_owned()]);
                let key_policy = identity.map(|identity| statement.in_key_policy(&identity.arn));
                crate::preflight::report::Repair { iam: Some(statement), key_policy, bucket_policy: None }
            });
            Box::new(AwsDetails {
                cause,
                operation: error.as_ref().map_or(Probe::Describe.operation(), |error| error.operation),
                action: action.map(str::to_owned),
                key: Some(self.key.to_owned()),
                principal: identity.map(|identity| identity.arn.clone()),
                policy: denial.policy,
                explicit_deny: denial.explicit,
                aws_code: error.as_ref().map(|error| error.code.clone()).unwrap_or_default(),
                aws_message: error.as_ref().map(|error| error.message.clone()).unwrap_or_default(),
                request_ids: error.map(|error| error.request_id).into_iter().filter(|id| !id.is_empty()).collect(),
                also: Vec::new(),
                repair,
            })
        });
        self.findings.push(Finding { aws, ..Finding::new(Code::KeyUnfit, self.key.to_owned(), problem, remedy) });
    }
}

const CUSTOMER: &str = "make a customer managed key (aws kms create-key) and name that";
