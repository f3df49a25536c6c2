//! Amazon Resource Names (IAM User Guide, "Amazon Resource Names").

/// `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`, taken apart, not judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arn<'a> {
    /// `aws`, `aws-cn`, `aws-us-gov`, ...
    pub partition: &'a str,
    /// `s3`, `kms`, `iam`, ...
    pub service: &'a str,
    /// Empty where the service is global or names are (S3, IAM).
    pub region: &'a str,
    /// 12 digits; empty for S3.
    pub account: &'a str,
    /// The rest, with its colons.
    pub resource: &'a str,
}

impl<'a> Arn<'a> {
    /// Takes `text` apart. `None` if it does not have the six parts.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.splitn(6, ':');
        let mut part = || parts.next();
        (part()? == "arn").then_some(())?;
        Some(Self { partition: part()?, service: part()?, region: part()?, account: part()?, resource: part()? })
    }

    /// The same of a key of KMS: neither a key id, nor an alias or its ARN.
    pub fn of_key(text: &'a str) -> Option<Self> {
        Self::parse(text).filter(|arn| arn.service == "kms" && arn.resource.starts_with("key/"))
    }

    /// Whether its partition is one of AWS.
    pub fn is_of_aws(&self) -> bool {
        self.partition == "aws" || self.partition.starts_with("aws-")
    }

    /// The bucket and the key of an ARN of S3.
    pub fn bucket_and_key(&self) -> (&'a str, Option<&'a str>) {
        match self.resource.split_once('/') {
            Some((bucket, key)) => (bucket, Some(key)),
            None => (self.resource, None),
        }
    }
}

/// The partition of a Region.
pub fn partition_of(region: &str) -> &'static str {
    match region {
        _ if region.starts_with("cn-") => "aws-cn",
        _ if region.starts_with("us-gov-") => "aws-us-gov",
        _ => "aws",
    }
}
