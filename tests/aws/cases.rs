//! The user cases of S3 and KMS, by number.
