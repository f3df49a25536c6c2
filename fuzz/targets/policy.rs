//! Policies that somebody pasted: every defect says what it is, and lies in the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use runseal::policy::lint;

fuzz_target!(|text: &str| {
    let lines = text.split('\n').count();
    for defect in lint(text) {
        assert!(!defect.problem.is_empty() && !defect.rule.is_empty());
        assert!((1..=lines).contains(&defect.line), "line {} of {lines}", defect.line);
        let line = text.split('\n').nth(defect.line - 1).expect("the line is there");
        assert!((1..=line.chars().count() + 1).contains(&defect.column), "column {} of {line:?}", defect.column);
    }
});
