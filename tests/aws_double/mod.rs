//! A double of S3, KMS and STS: S3 by `s3s`, authorisation by personas.
