//! Tests of reading files: types, lines, duplicates, unknown keys, and what must never happen.

use std::{convert::Infallible, fs};

use proptest::prelude::*;

use super::*;

const KEYS: &[&str] = &["name", "count", "list", "doors", "label"];
const DOOR_KEYS: &[&str] = &["cert", "mode"];

#[derive(Debug, PartialEq)]
struct Example {
    name: String,
    count: Option<u64>,
    list: Vec<String>,
    doors: Vec<String>,
    label: Option<String>,
}

fn read(text: &str, unknown: UnknownKeys) -> Result<(Example, Vec<Warning>), ConfigError> {
    Document::parse(text, "x.yaml")?.read(KEYS, unknown, |root, m| {
        let name = root.take("name").text("a string", m);
        let count = root.take("count").number("a whole number", m);
        let list = root
            .take("list")
            .text_or_texts("a string or a list of strings", m);
        let label = root.take("label").scalar("a plain value", m);
        let doors = root.take("doors").list("a list of doors", m, |item, m| {
            item.mapping(DOOR_KEYS, UnknownKeys::Refuse, "a door", m, |door, m| {
                let _mode = door.take("mode");
                door.take("cert").text("a path", m)
            })
        });
        let name = name.required(m, accept);
        let count = count.optional(m, accept);
        let list = list.each(m, accept);
        let label = label.optional(m, accept);
        let doors = doors.each_setting(m, |door, m| door.present(m)?.required(m, accept));
        Ok(Example {
            name: name?,
            count: count?,
            list: list?,
            doors: doors?,
            label: label?,
        })
    })
}

fn accept<T: Clone>(value: &T) -> Result<T, Infallible> {
    Ok(value.clone())
}

/// The report of a text that is refused, unknown keys included.
fn refusal(text: &str) -> String {
    read(text, UnknownKeys::Refuse).unwrap_err().to_string()
}

#[test]
fn a_good_file_is_read_with_empty_values_as_absent() {
    let text = "name: n\ncount: \nlist: [a, 'b']\ndoors:\n- cert: /c\n- {cert: /d}\nlabel: 5\n";

    let (example, warnings) = read(text, UnknownKeys::Refuse).unwrap();

    let strings = |list: [&str; 2]| list.map(str::to_owned).to_vec();
    assert_eq!(
        example,
        Example {
            name: "n".to_owned(),
            count: None,
            list: strings(["a", "b"]),
            doors: strings(["/c", "/d"]),
            label: Some("5".to_owned()),
        }
    );
    assert!(warnings.is_empty());
}

#[test]
fn all_mistakes_are_reported_together_in_the_order_of_the_file() {
    let text = "\
count: -1
list: [a, 2, {}]
doors:
  - cert: [x]
    mode: 1
    mode: 2
  - 7
  - mode: '0660'
nmae: n
count: 2
";

    assert_eq!(
        refusal(text),
        "\
x.yaml:1: count: -1: must be a whole number
x.yaml:2: list[1]: 2: must be a string
x.yaml:2: list[2]: a mapping: must be a string
x.yaml:4: doors[0].cert: a list: must be a path
x.yaml:6: doors[0].mode: is written twice, first in line 5
x.yaml:7: doors[1]: 7: must be a door
x.yaml:8: doors[2].cert: must be set
x.yaml:9: nmae: is no known key, did you mean name?
x.yaml:10: count: is written twice, first in line 1
x.yaml: name: must be set"
    );
}

#[test]
fn the_report_also_comes_line_by_line_and_on_one_line() {
    let error = read("name: 1\ncount: x", UnknownKeys::Refuse).unwrap_err();

    assert_eq!(
        error.lines(),
        [
            "x.yaml:1: name: 1: must be a string",
            "x.yaml:2: count: \"x\": must be a whole number"
        ]
    );
    assert_eq!(
        error.one_line(),
        "x.yaml:1: name: 1: must be a string; x.yaml:2: count: \"x\": must be a whole number"
    );
}

#[test]
fn every_wrong_type_is_named() {
    for (value, report) in [
        ("true", "true: must be a string"),
        ("5", "5: must be a string"),
        ("1.5", "1.5: must be a string"),
        ("-1", "-1: must be a string"),
        (
            "340282366920938463463374607431768211455",
            "340282366920938463463374607431768211455: must be a string",
        ),
        ("[a]", "a list: must be a string"),
        ("{a: b}", "a mapping: must be a string"),
        ("''", "must be set"),
        ("~", "must be set"),
    ] {
        assert_eq!(
            refusal(&format!("name: {value}")),
            format!("x.yaml:1: name: {report}")
        );
    }
}

#[test]
fn unknown_keys_are_warnings_where_others_write_the_file() {
    let (_, warnings) = read("Name: x\nname: n\n5: y\nsomething: z\n", UnknownKeys::Warn).unwrap();

    let shown: Vec<String> = warnings.iter().map(Warning::to_string).collect();
    assert_eq!(
        shown,
        [
            "x.yaml:1: Name: is no known key, did you mean name?",
            "x.yaml:3: 5: is no known key",
            "x.yaml:4: something: is no known key",
        ]
    );
}

#[test]
fn long_reports_are_cut() {
    let text: String = (0..200).map(|n| format!("k{n}: x\n")).collect();

    let error = refusal(&text);
    let (_, warnings) = read(&format!("name: n\n{text}"), UnknownKeys::Warn).unwrap();

    assert_eq!(error.lines().count(), MAX_REPORTED + 1);
    assert_eq!(
        error.lines().last(),
        Some("x.yaml: 151 more mistakes are not shown")
    );
    assert_eq!(warnings.len(), MAX_REPORTED + 1);
    assert_eq!(
        warnings.last().unwrap().to_string(),
        "x.yaml: 150 more warnings like these are not shown"
    );
}

#[test]
fn what_is_shown_of_a_value_is_short_and_harmless() {
    let text = format!("name: n\ncount: \"\\e[2J\\r\\n{}\"", "x".repeat(5000));

    let error = refusal(&text);

    assert!(
        error.starts_with("x.yaml:2: count: \"\\u{1b}[2J\\r\\nxxx"),
        "{error}"
    );
    assert!(error.len() < 150, "{error}");
}

#[test]
fn syntax_errors_have_line_and_column() {
    for (text, report) in [
        (
            "name: [1\nb: 2\n",
            "x.yaml:2:2: did not find expected ',' or ']', while parsing a flow sequence at line 1 column 7",
        ),
        (
            "name:\n\tb: 1",
            "x.yaml:2:1: found character that cannot start any token, while scanning for the next token",
        ),
        ("name: *x", "x.yaml:1:7: unknown anchor"),
        (
            "name: a\n---\nname: b\n",
            "x.yaml:2:1: holds more than one YAML document",
        ),
        (
            "name: a\ncount: \u{1}",
            "x.yaml:2:8: character U+0001 is not allowed in YAML",
        ),
        (
            "name: a\n\u{feff}",
            "x.yaml:2:1: character U+FEFF is not allowed in YAML",
        ),
        (
            "a: b\nname: !x y",
            "x.yaml:2:7: name: has a tag of its own (a word after '!'), which no key here takes",
        ),
        (
            "\"a\\nb\": !x y",
            "x.yaml:1:9: a\\nb: has a tag of its own (a word after '!'), which no key here takes",
        ),
        (
            "%YAML 1.2\n---\nname: a",
            "x.yaml:1:1: has a directive, which no file here needs",
        ),
        ("name: &a [*a]", "x.yaml:1:7: recursion limit exceeded"),
    ] {
        assert_eq!(refusal(text), report, "{text:?}");
    }
}

#[test]
fn a_file_must_be_a_mapping() {
    for (text, report) in [
        ("", "x.yaml: is empty, expected keys and values"),
        ("# nothing\n", "x.yaml: is empty, expected keys and values"),
        ("---\n", "x.yaml: is empty, expected keys and values"),
        (
            "- a\n",
            "x.yaml: must be a mapping of keys to values, but is a list",
        ),
        (
            "name\n",
            "x.yaml: must be a mapping of keys to values, but is a string",
        ),
        (
            "5",
            "x.yaml: must be a mapping of keys to values, but is a number",
        ),
        (
            "true",
            "x.yaml: must be a mapping of keys to values, but is a boolean",
        ),
    ] {
        assert_eq!(refusal(text), report, "{text:?}");
    }
}

#[test]
fn an_aliased_value_has_the_line_of_its_alias() {
    let text = "name: n\nlist: &l [1, b]\ndoors:\n  - cert: *l\n  - cert: /x\n";

    let report = refusal(text);

    assert_eq!(
        report,
        "x.yaml:2: list[0]: 1: must be a string\nx.yaml:4: doors[0].cert: a list: must be a path"
    );
}

#[test]
fn other_line_ends_and_a_byte_order_mark_do_not_matter() {
    let report = refusal("\u{feff}# c\r\nname: n\r\ncount: x\r\n");

    assert_eq!(report, "x.yaml:3: count: \"x\": must be a whole number");
}

#[test]
fn keys_that_are_data_must_be_strings_written_once() {
    let document = Document::parse("10.0.10.10: a\n5: b\nx: c\nx: d\n", "x.yaml").unwrap();

    let result = document.read(&[], UnknownKeys::Data, |section, m| {
        let entries = section.take_all(m);
        let names: Vec<_> = entries
            .iter()
            .filter_map(|(name, _)| name.given().cloned())
            .collect();
        assert_eq!(names, ["10.0.10.10", "x"]);
        Ok(())
    });

    assert_eq!(
        result.unwrap_err().to_string(),
        "x.yaml:2: 5: must be a string, write the key in quotes\n\
         x.yaml:4: x: is written twice, first in line 3"
    );
}

#[test]
fn files_that_cannot_be_read_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str| Document::load(&dir.path().join(name)).unwrap_err();
    fs::write(dir.path().join("latin1.yaml"), b"name: a\nlabel: caf\xe9\n").unwrap();
    let many_bytes = "é".repeat(MAX_FILE_BYTES);
    fs::write(dir.path().join("large.yaml"), many_bytes).unwrap();

    for (error, source) in [
        (load("none.yaml"), "No such file or directory"),
        (load("."), "Is a directory"),
    ] {
        let ConfigError::Read { source: cause, .. } = &error else {
            panic!("unexpected {error:?}");
        };
        assert!(error.to_string().ends_with(": cannot be read"), "{error}");
        assert!(cause.to_string().starts_with(source), "{cause}");
        assert!(error.one_line().contains(source), "{error}");
    }
    assert!(
        load("latin1.yaml")
            .to_string()
            .ends_with("latin1.yaml:2: is not UTF-8 text")
    );
    assert!(
        load("large.yaml")
            .to_string()
            .ends_with("large.yaml: is larger than 1048576 bytes")
    );
}

#[test]
fn a_loaded_file_is_known_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    fs::write(&path, "name: 1\n").unwrap();

    let result = Document::load(&path)
        .unwrap()
        .read(KEYS, UnknownKeys::Refuse, |root, m| {
            root.take("name").text("a string", m).required(m, accept)
        });

    let expected = format!("{}:1: name: 1: must be a string", path.display());
    assert_eq!(result.unwrap_err().to_string(), expected);
}

/// Texts that cost a parser minutes, gigabytes or the stack. If one is not refused early, the
/// time that the test runner allows is over, or the memory.
#[test]
fn hostile_files_are_refused_early() {
    let large = MAX_FILE_BYTES - 100;
    let laughs = (1..10).fold(
        "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned(),
        |text, n| {
            format!(
                "{text}a{n}: &a{n} [{}]\n",
                format!("*a{}, ", n - 1).repeat(8)
            )
        },
    );
    let wide = format!(
        "name: &a [{}]\nlist: [{}]",
        "x,".repeat(2000),
        "*a,".repeat(20_000)
    );
    let long = format!(
        "name: &a {}\nlist: [{}]",
        "x".repeat(large / 2),
        "*a,".repeat(10_000)
    );
    let tags: String = (0..50_000).map(|n| format!("%TAG !{n}! x:\n")).collect();
    let lasso = "name: &a {b: *a, c: *a, d: *a}".to_owned();
    for (text, report) in [
        ("[".repeat(large), "is nested deeper than 32 levels"),
        ("{".repeat(large), "is nested deeper than 32 levels"),
        ("- ".repeat(large / 2), "is nested deeper than 32 levels"),
        ("[a, ".repeat(large / 4), "is nested deeper than 32 levels"),
        ("? ".repeat(large / 2), "is nested deeper than 32 levels"),
        (tags, "has a directive, which no file here needs"),
        (laughs, "repetition limit exceeded"),
        (wide, "holds too much once its aliases are expanded"),
        (long, "holds too much once its aliases are expanded"),
        (lasso, "recursion limit exceeded"),
    ] {
        let error = refusal(&text);

        assert!(error.contains(report), "{}: {error}", &text[..20]);
    }
    let too_long = "#".repeat(MAX_FILE_BYTES + 1);
    assert_eq!(refusal(&too_long), "x.yaml: is larger than 1048576 bytes");
}

/// Pieces that mean something in YAML, so that random texts get past its first lines.
fn yaml_like() -> impl Strategy<Value = String> {
    let pieces = [
        "name",
        "count",
        "list",
        "doors",
        "cert",
        ":",
        ": ",
        "\n",
        "\n  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "&a ",
        "*a",
        "!t ",
        "!!str ",
        "'",
        "\"",
        "|\n",
        ">-\n",
        "#",
        "? ",
        "---\n",
        "...\n",
        "%TAG ! x\n",
        "\t",
        "\r\n",
        "<<",
        "~",
        "5",
        "true",
        "é",
        "\u{2028}",
        "\\x",
    ];
    proptest::collection::vec(proptest::sample::select(pieces.to_vec()), 0..60)
        .prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn no_text_makes_reading_panic(text in prop_oneof![yaml_like(), any::<String>()]) {
        let _ = read(&text, UnknownKeys::Warn);
    }

    /// The two YAML parsers must agree on the structure, else mistakes lose their lines.
    #[test]
    fn every_mistake_in_a_valid_file_has_a_line(
        names in proptest::collection::vec("[a-z]{8,12}", 1..20),
        values in proptest::collection::vec(
            proptest::sample::select(vec!["x", "[a, {b: c}]", "{d: [e, f]}", "", "\n  - g\n  - h: i",
                "|\n  text\n  text", "\"a\n  b\"", "&x y", "{? k : v}", "[k: v, ? w]"]), 20),
    ) {
        let lines = names.iter().zip(&values).map(|(name, value)| format!("{name}: {value}\n"));
        let text: String = lines.collect();
        let error = read(&text, UnknownKeys::Refuse).unwrap_err().to_string();
        for line in error.lines().filter(|line| !line.ends_with("name: must be set")) {
            let number = line.split(':').nth(1).unwrap();
            prop_assert!(number.parse::<usize>().is_ok(), "{} in {}", line, text);
        }
    }
}
