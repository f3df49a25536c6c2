//! The table of layers, read from the documentation of the crate so that rule and document cannot differ.

/// Rows of the table, top to bottom. The last row is vocabulary: visible to all.
pub struct Layers {
    rows: Vec<Row>,
}

struct Row {
    modules: Vec<String>,
    visible: Vec<String>,
}

impl Layers {
    pub fn of_the_crate() -> Self {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs");
        Self::parse(&std::fs::read_to_string(path).expect("src/lib.rs can be read"))
    }

    /// Reads the lines `//! | [`module`], .. | what | may see |`.
    pub fn parse(lib: &str) -> Self {
        let cells: Vec<Vec<&str>> = lib
            .lines()
            .filter_map(|line| line.strip_prefix("//! | [`"))
            .map(|row| row.split(" | ").collect())
            .collect();
        let names: Vec<Vec<String>> = cells.iter().map(|row| names(row[0])).collect();
        assert!(!names.is_empty(), "src/lib.rs has no table of layers");
        let vocabulary = names.last().expect("not empty");
        let mut rows = Vec::new();
        for (at, row) in cells.iter().enumerate() {
            let below: Vec<String> = names[at + 1..].concat();
            let mut visible = match row[2].trim_end_matches(" |") {
                "everything below" => below.clone(),
                "nothing" => Vec::new(),
                list => names_in_backticks(list, &names.concat()),
            };
            for name in &visible {
                assert!(below.contains(name), "the row of `{}` must see lower rows only, not `{name}`", names[at][0]);
            }
            if at + 1 < cells.len() {
                visible.extend(vocabulary.iter().filter(|name| !visible.contains(name)).cloned().collect::<Vec<_>>());
            }
            rows.push(Row { modules: names[at].clone(), visible });
        }
        Self { rows }
    }

    pub fn knows(&self, module: &str) -> bool {
        self.rows.iter().any(|row| row.modules.iter().any(|name| name == module))
    }

    /// Whether `from` may import `to`: the row says so, or both stand in one row and `to` stands further right.
    pub fn allow(&self, from: &str, to: &str) -> bool {
        self.visible(from).iter().any(|name| name == to)
    }

    pub fn visible(&self, from: &str) -> Vec<String> {
        let Some(row) = self.rows.iter().find(|row| row.modules.iter().any(|name| name == from)) else {
            return Vec::new();
        };
        let right = row.modules.iter().skip_while(|name| *name != from).skip(1);
        right.chain(&row.visible).cloned().collect()
    }
}

/// `` cli`], [`exit`] `` to `cli`, `exit`.
fn names(cell: &str) -> Vec<String> {
    cell.split("[`").map(|part| part.split('`').next().unwrap_or_default().to_owned()).collect()
}

/// The words in backticks that name a module (`Cleared` does not).
fn names_in_backticks(cell: &str, modules: &[String]) -> Vec<String> {
    cell.split('`').filter(|word| modules.iter().any(|name| name == word)).map(str::to_owned).collect()
}
