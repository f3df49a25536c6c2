//! IAM and key policies: what a run needs, and what is wrong with one. Pure: nothing here asks AWS.

mod lint;
mod run;
mod statement;

pub use lint::{Defect, Severity, lint};
pub use run::{KeyPolicy, KeySource, Needs, Policies, Use, write};
pub use statement::{
    KeyUse, Place, Policy, Statement, allow, describe_key, get_objects, list_prefix, policy_principal, put_objects,
    run_key, use_key,
};
