//! `runseal policy lint`: what is wrong with a policy, judged by the document alone.
//!
//! One rule per function; each has an id, which does not change. Errors do not do what they seem to; warnings are
//! probably not what was meant; hints hold under circumstances that the document does not tell.

mod document;
mod json;
mod keys;
mod names;
mod objects;
mod principals;
mod texts;

use serde::Serialize;

use document::Document;
use json::Position;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// AWS refuses it, or it does not do what it seems to.
    Error,
    /// Probably not what was meant.
    Warning,
    /// Wrong under circumstances that the document does not tell.
    Hint,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Defect {
    /// Line, counted from 1.
    pub line: usize,
    /// Column in characters, counted from 1.
    pub column: usize,
    /// Where in the document, such as `Statement[2].Condition.StringEquals.kms:ViaService`; empty for all of it.
    pub path: String,
    /// Id of the rule.
    pub rule: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What is wrong.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// Where something stands.
#[derive(Clone, Debug)]
pub struct Spot {
    at: Position,
    path: String,
}

/// What was found so far.
#[derive(Default)]
pub struct Findings(Vec<Defect>);

impl Findings {
    fn error(&mut self, spot: &Spot, rule: &'static str, problem: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, spot, rule, problem.into(), remedy.into());
    }

    fn warning(&mut self, spot: &Spot, rule: &'static str, problem: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, spot, rule, problem.into(), remedy.into());
    }

    fn hint(&mut self, spot: &Spot, rule: &'static str, problem: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Hint, spot, rule, problem.into(), remedy.into());
    }

    fn add(&mut self, severity: Severity, spot: &Spot, rule: &'static str, problem: String, remedy: String) {
        let Position { line, column } = spot.at;
        self.0.push(Defect { line, column, path: spot.path.clone(), rule, severity, problem, remedy });
    }
}

/// All that is wrong with the policy document in `text`, in the order of its lines.
pub fn lint(text: &str) -> Vec<Defect> {
    let mut findings = Findings::default();
    match json::parse(text) {
        Ok(root) => {
            let document = Document::of(&root, &mut findings);
            texts::check(&root, text, &document, &mut findings);
            principals::check(&document, &mut findings);
            keys::check(&document, &mut findings);
            objects::check(&document, &mut findings);
        }
        Err(error) => {
            let spot = Spot { at: error.at, path: String::new() };
            let remedy = "correct it here or just before; nothing else was looked at";
            findings.error(&spot, "invalid-json", error.problem, remedy);
        }
    }
    findings.0.sort_by_key(|defect| (defect.line, defect.column, defect.severity));
    findings.0
}
