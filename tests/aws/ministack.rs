//! Against ministack: IAM and bucket policies.
