//! A policy document as its rules see it: statements, taken apart, every piece with its place.

use super::json::{Entry, Node, Position, Tree};
use super::names::{self, DOCUMENT_ELEMENTS, OPERATORS, PRINCIPAL_KINDS, STATEMENT_ELEMENTS};
use super::{Findings, Spot};

/// A text in the document.
#[derive(Clone, Debug)]
pub struct Item {
    /// The text.
    pub text: String,
    /// Where.
    pub spot: Spot,
}

/// One key of one operator of a `Condition`.
#[derive(Debug)]
pub struct Test {
    /// `StringEquals`, with qualifiers.
    pub operator: String,
    /// Condition key.
    pub key: String,
    /// Values.
    pub values: Vec<Item>,
    /// Where.
    pub spot: Spot,
}

impl Test {
    /// Whether it tests this key, whose letters may be of either case.
    pub fn is_of(&self, key: &str) -> bool {
        self.key.eq_ignore_ascii_case(key)
    }

    /// The operator without `ForAllValues:` and `IfExists`.
    pub fn plain_operator(&self) -> &str {
        let operator = self.operator.rsplit(':').next().unwrap_or_default();
        operator.strip_suffix("IfExists").unwrap_or(operator)
    }

    /// Whether the key may be missing.
    pub fn if_exists(&self) -> bool {
        self.operator.ends_with("IfExists")
    }
}

/// One statement.
#[derive(Debug)]
pub struct StatementNode {
    /// Where.
    pub spot: Spot,
    /// Whether its effect is `Allow`.
    pub allows: bool,
    /// `Sid`.
    pub sid: Option<Item>,
    /// `Action`; empty with `NotAction`.
    pub actions: Vec<Item>,
    /// `Resource`; empty with `NotResource`.
    pub resources: Vec<Item>,
    /// `Principal`, kind and name; of `"*"`, the kind is empty.
    pub principals: Vec<(String, Item)>,
    /// `NotPrincipal`.
    pub not_principal: Option<Spot>,
    /// `Condition`.
    pub tests: Vec<Test>,
}

impl StatementNode {
    /// Whether it is resource-based.
    pub fn has_principal(&self) -> bool {
        !self.principals.is_empty() || self.not_principal.is_some()
    }

    /// Actions of `service` (`s3`, `kms`), without it; `*` is an action of every service.
    pub fn actions_of(&self, service: &str) -> impl Iterator<Item = &str> {
        self.actions.iter().filter_map(move |item| match item.text.split_once(':') {
            Some((prefix, action)) => prefix.eq_ignore_ascii_case(service).then_some(action),
            None => (item.text == "*").then_some("*"),
        })
    }

    /// Whether one of its actions is, or may be, `service:action`.
    pub fn may(&self, service: &str, action: &str) -> bool {
        self.actions_of(service).any(|pattern| names::matches(pattern, action))
    }

    /// The tests of a condition key.
    pub fn tests_of(&self, key: &str) -> impl Iterator<Item = &Test> {
        self.tests.iter().filter(move |test| test.is_of(key))
    }
}

/// A whole document.
#[derive(Debug, Default)]
pub struct Document {
    /// Its statements.
    pub statements: Vec<StatementNode>,
}

impl Document {
    /// Whether it is the policy of a resource: then statements name principals.
    pub fn is_resource_based(&self) -> bool {
        self.statements.iter().any(StatementNode::has_principal)
    }

    /// Takes a document apart, and tells where it is none.
    pub fn of(root: &Node, findings: &mut Findings) -> Self {
        let spot = Spot { at: root.at, path: String::new() };
        let Some(entries) = object(root, &spot, "a policy document", findings) else {
            return Self::default();
        };
        known_names(entries, &spot, &DOCUMENT_ELEMENTS, findings);
        version(entries, &spot, findings);
        let Some(statements) = entries.iter().find(|entry| entry.name == "Statement") else {
            findings.error(&spot, "structure", "there is no Statement", "add one; a policy without it allows nothing");
            return Self::default();
        };
        let statements = match &statements.node.value {
            Tree::Array(nodes) => nodes
                .iter()
                .enumerate()
                .filter_map(|(number, node)| {
                    statement(node, &spot.below(&format!("Statement[{number}]"), node.at), findings)
                })
                .collect(),
            _ => statement(&statements.node, &spot.below("Statement", statements.node.at), findings)
                .into_iter()
                .collect(),
        };
        Self { statements }
    }
}

fn version(entries: &[Entry], spot: &Spot, findings: &mut Findings) {
    let Some(version) = entries.iter().find(|entry| entry.name == "Version") else {
        let problem = "there is no Version, so the language is that of 2008, in which policy variables are plain text";
        return findings.warning(spot, "missing-version", problem, "add \"Version\": \"2012-10-17\"");
    };
    let known = matches!(&version.node.value, Tree::Text(text) if text == "2012-10-17" || text == "2008-10-17");
    if !known {
        let spot = spot.below("Version", version.node.at);
        findings.error(&spot, "version", "there is no such version of the policy language", "write \"2012-10-17\"");
    }
}

fn statement(node: &Node, spot: &Spot, findings: &mut Findings) -> Option<StatementNode> {
    let entries = object(node, spot, "a statement", findings)?;
    known_names(entries, spot, &STATEMENT_ELEMENTS, findings);
    let find = |name: &str| entries.iter().find(|entry| entry.name == name);
    let texts = |name: &str, findings: &mut Findings| {
        find(name).map_or_else(Vec::new, |entry| items(&entry.node, &spot.below(name, entry.node.at), findings))
    };
    let effect = texts("Effect", findings);
    if !matches!(&effect[..], [one] if one.text == "Allow" || one.text == "Deny") {
        let at = effect.first().map_or(spot, |item| &item.spot);
        findings.error(at, "structure", "the Effect is neither Allow nor Deny", "write one of them, in this spelling");
    }
    for (one, other) in [("Action", "NotAction"), ("Resource", "NotResource"), ("Principal", "NotPrincipal")] {
        let (given, negated) = (find(one).is_some(), find(other).is_some());
        if given && negated {
            findings.error(spot, "structure", format!("it has {one} and {other}"), "leave one of them out");
        } else if !given && !negated && one != "Principal" {
            findings.error(spot, "structure", format!("it has no {one}"), format!("add {one}"));
        }
    }
    Some(StatementNode {
        spot: spot.clone(),
        allows: effect.first().is_some_and(|item| item.text == "Allow"),
        sid: texts("Sid", findings).into_iter().next(),
        actions: texts("Action", findings),
        resources: texts("Resource", findings),
        principals: find("Principal").map_or_else(Vec::new, |entry| principals(entry, spot, findings)),
        not_principal: find("NotPrincipal").map(|entry| spot.below("NotPrincipal", entry.at)),
        tests: find("Condition").map_or_else(Vec::new, |entry| condition(entry, spot, findings)),
    })
}

fn principals(entry: &Entry, spot: &Spot, findings: &mut Findings) -> Vec<(String, Item)> {
    let spot = spot.below("Principal", entry.node.at);
    match &entry.node.value {
        Tree::Text(text) if text == "*" => vec![(String::new(), Item { text: text.clone(), spot })],
        Tree::Object(kinds) => {
            known_names(kinds, &spot, &PRINCIPAL_KINDS, findings);
            let named = kinds.iter().flat_map(|kind| {
                let items = items(&kind.node, &spot.below(&kind.name, kind.node.at), findings);
                items.into_iter().map(|item| (kind.name.clone(), item)).collect::<Vec<_>>()
            });
            named.collect()
        }
        _ => {
            let remedy = "write {\"AWS\": \"arn:...\"}, or another of AWS, Service, Federated, CanonicalUser";
            findings.error(&spot, "structure", "the Principal has no kind", remedy);
            Vec::new()
        }
    }
}

fn condition(entry: &Entry, spot: &Spot, findings: &mut Findings) -> Vec<Test> {
    let spot = spot.below("Condition", entry.node.at);
    let Some(operators) = object(&entry.node, &spot, "a condition", findings) else {
        return Vec::new();
    };
    let mut tests = Vec::new();
    for operator in operators {
        let spot = spot.below(&operator.name, operator.at);
        known_operator(&operator.name, &spot, findings);
        for key in object(&operator.node, &spot, "an operator", findings).unwrap_or_default() {
            let spot = spot.below(&key.name, key.at);
            let values = items(&key.node, &spot, findings);
            tests.push(Test { operator: operator.name.clone(), key: key.name.clone(), values, spot });
        }
    }
    tests
}

fn known_operator(name: &str, spot: &Spot, findings: &mut Findings) {
    let plain = name.strip_prefix("ForAllValues:").or(name.strip_prefix("ForAnyValue:")).unwrap_or(name);
    let plain = plain.strip_suffix("IfExists").unwrap_or(plain);
    if !OPERATORS.iter().any(|known| known.eq_ignore_ascii_case(plain)) {
        let remedy = names::nearest(plain, OPERATORS)
            .map_or_else(|| "see \"Condition operators\" in the IAM User Guide".to_owned(), |it| format!("write {it}"));
        findings.error(spot, "condition-operator", format!("there is no condition operator `{name}`"), remedy);
    }
}

/// The texts of a value that is one or a list of them.
fn items(node: &Node, spot: &Spot, findings: &mut Findings) -> Vec<Item> {
    match &node.value {
        Tree::Text(text) | Tree::Plain(text) => vec![Item { text: text.clone(), spot: spot.clone() }],
        Tree::Array(nodes) => {
            let below = |(number, node): (usize, &Node)| items(node, &spot.indexed(number, node.at), findings);
            nodes.iter().enumerate().flat_map(below).collect()
        }
        Tree::Object(_) => {
            findings.error(
                spot,
                "structure",
                "an object stands where a text is expected",
                "write a text, or a list of texts",
            );
            Vec::new()
        }
    }
}

/// The entries of an object, duplicates told.
fn object<'a>(node: &'a Node, spot: &Spot, what: &str, findings: &mut Findings) -> Option<&'a [Entry]> {
    let Tree::Object(entries) = &node.value else {
        findings.error(spot, "structure", format!("{what} must be an object"), "write {...}");
        return None;
    };
    for (number, entry) in entries.iter().enumerate() {
        if let Some(first) = entries[..number].iter().find(|earlier| earlier.name == entry.name) {
            let problem =
                format!("`{}` stands here for the second time; the first is in line {}", entry.name, first.at.line);
            let remedy = "merge the two: readers take one and drop the other";
            findings.error(&spot.below(&entry.name, entry.at), "duplicate-key", problem, remedy);
        }
    }
    Some(entries)
}

fn known_names(entries: &[Entry], spot: &Spot, known: &[&str], findings: &mut Findings) {
    for Entry { name, at, .. } in entries.iter().filter(|entry| !known.contains(&entry.name.as_str())) {
        let remedy = names::nearest(name, known.iter().copied())
            .map_or_else(|| format!("use {}", known.join(", ")), |meant| format!("write {meant}"));
        findings.error(&spot.below(name, *at), "unknown-element", format!("there is no element `{name}` here"), remedy);
    }
}

impl Spot {
    /// The place of what is called `name` in here.
    pub fn below(&self, name: &str, at: Position) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { at, path }
    }

    /// The place of one item of a list.
    fn indexed(&self, number: usize, at: Position) -> Self {
        Self { at, path: format!("{}[{number}]", self.path) }
    }
}
