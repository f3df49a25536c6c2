//! Rules about buckets and objects of S3.

use super::Findings;
use super::document::{Document, Item, StatementNode};
use super::names::{S3_BUCKET_ACTIONS, S3_OBJECT_ACTIONS, matches};
use crate::spec::Arn;

pub fn check(document: &Document, findings: &mut Findings) {
    for statement in &document.statements {
        if statement.resources.is_empty() {
            continue;
        }
        for action in &statement.actions {
            let Some((service, name)) = action.text.split_once(':') else { continue };
            if service.eq_ignore_ascii_case("s3") {
                matching_resource(action, name, statement, findings);
            }
        }
    }
}

/// An action on objects needs the ARN of objects, one on buckets that of a bucket.
fn matching_resource(action: &Item, name: &str, statement: &StatementNode, findings: &mut Findings) {
    let of = |names: &[&str]| names.iter().any(|known| matches(name, known));
    let (on_objects, on_buckets) = (of(&S3_OBJECT_ACTIONS), of(&S3_BUCKET_ACTIONS));
    let resources = |fits: fn(&str) -> bool| statement.resources.iter().any(|resource| fits(&resource.text));
    if on_objects && !on_buckets && !resources(names_objects) {
        let problem = format!("{} is about objects, but every Resource here is a bucket", action.text);
        findings.error(&action.spot, "s3-resource", problem, "add the objects: arn:aws:s3:::BUCKET/*");
    }
    if on_buckets && !on_objects && !resources(names_buckets) {
        let problem = format!("{} is about buckets, but every Resource here is an object", action.text);
        findings.error(&action.spot, "s3-resource", problem, "add the bucket: arn:aws:s3:::BUCKET");
    }
}

fn names_objects(resource: &str) -> bool {
    // A star matches slashes too.
    resource_of_s3(resource).is_none_or(|name| name.contains(['/', '*']))
}

fn names_buckets(resource: &str) -> bool {
    resource_of_s3(resource)
        .is_none_or(|name| !name.contains('/') || name.starts_with('*') || name.starts_with("accesspoint/"))
}

/// The resource part of an ARN of S3; `None` for `*` and for what other rules judge.
fn resource_of_s3(resource: &str) -> Option<&str> {
    Arn::parse(resource).filter(|arn| arn.service == "s3").map(|arn| arn.resource)
}
