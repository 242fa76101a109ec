//! The rules of the repository that the compiler cannot check. No GPU needed.
use luthier::backend::kernel_text::{self, Names, Section};
use luthier::model::arch::model_types;
use luthier::ops::{Access, DIMS, Op, Spec};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const PLACES: [(&str, &str); 4] = [("src/ops", "rs"), ("shaders", "wgsl"), ("kernels", "cu"), ("tests/ops", "rs")];
/// Files of those folders that belong to no op.
const SHARED: &[&str] = &[
    "mod", "table", // src/ops
    "main", "backend", "case", "codes", "controls", "devices", "gradient", "limits", "parity",
    "values", // tests/ops
];
/// Folders in them: included fragments, and further variants of an op.
const FOLDERS: &[&str] = &["shared", "fast"];

/// Files whose rows are named by what they are about one by one: ggml's formats.
const FAMILIES: &[&str] = &["gguf"];

/// Forward rows without a backward of their own, and why.
const NO_BACKWARD: &[(&str, &str)] = &[
    ("cast_forward", "its gradient is a cast the other way"),
    ("fill_forward", "it has no input"),
    ("paged_attention_forward", "it decodes; training has attention_forward"),
    (
        "rmsnorm_residual_forward",
        "rmsnorm_backward, then residual_backward: sum's gradient is a's, and b's but for the scale",
    ),
    ("noise_forward", "what it adds is no function of what it is added to"),
];

/// What a shader only writes, and reads again where the same thread has written it.
const READ_AGAIN: &[(&str, &str)] = &[("rmsnorm_residual_forward", "sum")];

fn specs() -> impl Iterator<Item = &'static Spec> {
    Op::ALL.iter().map(|op| op.spec())
}

fn files() -> BTreeSet<&'static str> {
    specs().map(|op| op.file).collect()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn entries(dir: impl AsRef<Path>) -> Vec<PathBuf> {
    let dir = dir.as_ref();
    let listing = std::fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut paths: Vec<PathBuf> = listing.map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths
}

/// All .rs files under `dir`.
fn sources(dir: impl AsRef<Path>) -> Vec<PathBuf> {
    let nested = |path: PathBuf| if path.is_dir() { sources(path) } else { vec![path] };
    entries(dir).into_iter().flat_map(nested).filter(|p| p.extension().is_some_and(|e| e == "rs")).collect()
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|s| s.to_str()).expect("a UTF-8 name")
}

fn ident(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().expect("split gives at least one")
}

/// What is wrong, all at once.
fn report(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} rules broken\n{}", wrong.len(), wrong.join("\n"));
}

fn parse(text: &str, path: &str) -> Vec<Section<'static>> {
    let text: &'static str = Box::leak(text.to_string().into_boxed_str());
    kernel_text::parse(text).unwrap_or_else(|e| panic!("{path}: {e}")).1
}

/// An op's entry points in its shader (1) or kernel (2).
fn sections(place: usize, file: &str) -> Vec<Section<'static>> {
    let path = format!("{}/{file}.{}", PLACES[place].0, PLACES[place].1);
    parse(&read(&path), &path)
}

#[test]
fn rows_use_the_common_letters_and_put_outputs_first() {
    for op in specs() {
        assert!(op.dims.iter().all(|d| DIMS.iter().any(|(letter, _)| letter == d)), "{}: {:?}", op.name, op.dims);
        assert!(op.args.is_sorted_by_key(|a| !a.access.writes()), "{}: outputs first", op.name);
        let family = FAMILIES.contains(&op.file);
        assert!(family || op.name.starts_with(op.file), "{} lives in {}", op.name, op.file);
    }
}

#[test]
fn every_forward_has_a_backward_or_a_reason() {
    let rows: BTreeSet<_> = specs().map(|op| op.name).collect();
    for stem in rows.iter().filter_map(|name| name.strip_suffix("_forward")) {
        let excused = NO_BACKWARD.iter().any(|(name, _)| name.strip_suffix("_forward") == Some(stem));
        let backward = rows.contains(&*format!("{stem}_backward"));
        assert!(backward != excused, "{stem}: a backward row or a line in NO_BACKWARD, and not both");
    }
    assert!(NO_BACKWARD.iter().all(|(name, _)| rows.contains(name)), "NO_BACKWARD excuses a row that is gone");
}

#[test]
fn no_file_without_a_row() {
    let mut wrong = Vec::new();
    for (dir, ext) in PLACES {
        for path in entries(dir) {
            let folder = path.is_dir() && FOLDERS.contains(&stem(&path));
            let known = files().contains(stem(&path)) || SHARED.contains(&stem(&path));
            let source = known && path.extension().is_some_and(|e| e == ext);
            if !(folder || source) {
                wrong.push(format!("{} belongs to no row", path.display()));
            }
        }
    }
    report(wrong);
}

#[test]
fn no_reference_without_a_row() {
    for file in files() {
        let text = read(format!("src/ops/{file}.rs"));
        let reference = |rest: &&str| rest.lines().next().is_some_and(|line| line.contains("<R: Real>("));
        let got = text.split("pub fn ").skip(1).filter(reference).map(ident);
        let want: BTreeSet<_> = specs().filter(|op| op.file == file).map(|op| op.name).collect();
        assert_eq!(
            got.collect::<BTreeSet<_>>(),
            want,
            "src/ops/{file}.rs: references are public and generic over R: Real"
        );
    }
}

#[test]
fn every_row_has_cases() {
    for op in specs() {
        let text = read(format!("tests/ops/{}.rs", op.file));
        let named = text.split("Op::").skip(1).any(|rest| ident(rest) == op.name);
        assert!(named, "tests/ops/{}.rs has no case of {}", op.file, op.name);
    }
}

#[test]
fn every_row_has_a_shader_and_a_kernel_and_they_a_row() {
    let mut wrong = Vec::new();
    for file in files() {
        let want: BTreeSet<_> = specs().filter(|op| op.file == file).map(|op| op.name).collect();
        for place in [1, 2] {
            let sections = sections(place, file);
            let got: BTreeSet<_> = sections.iter().map(|s| s.op()).collect();
            if got != want {
                let path = format!("{}/{file}.{}", PLACES[place].0, PLACES[place].1);
                wrong.push(format!("{path} must have the sections {want:?}, got {got:?}"));
            }
        }
    }
    report(wrong);
}

/// What the backends add to the u32 fields of the params: elements per word, and the matmul shader's tile and splits.
const ADDED: [(&str, u64); 4] = [("W", 2), ("BM", 64), ("BN", 64), ("splits", 1)];

/// The values of a section's expressions where every field of the params is `value`.
fn geometry(
    section: &Section,
    op: &Spec,
    value: u32,
    added: &[(&'static str, u64)],
) -> Result<(Vec<u64>, u64, u64), String> {
    let words: Vec<u8> = op.fields.iter().flat_map(|_| value.to_ne_bytes()).collect();
    let mut names: Names = kernel_text::names(op.fields, &words);
    names.extend(added.iter().copied());
    let grid = section.grid.iter().map(|e| kernel_text::eval(e, &names)).collect::<Result<_, _>>()?;
    Ok((grid, kernel_text::eval(section.block, &names)?, kernel_text::eval(section.shared, &names)?))
}

#[test]
fn grids_are_expressions_over_the_params() {
    let mut wrong = Vec::new();
    for op in specs() {
        for (place, added) in [(1, &ADDED[..]), (2, &[])] {
            for section in sections(place, op.file).iter().filter(|s| s.op() == op.name) {
                for value in [2, 64, 254] {
                    let fine = |(grid, block, shared): (Vec<u64>, u64, u64)| {
                        let whole = (1..=3).contains(&grid.len()) && grid.iter().all(|n| *n > 0);
                        // 227 KiB is the most that any GPU of 2026 lends to a block
                        whole && (1..=1024).contains(&block) && shared <= 227 * 1024
                    };
                    match geometry(section, op, value, added) {
                        Ok(got) if fine(got.clone()) => {}
                        other => wrong.push(format!("{}: with {value} everywhere {other:?}", section.name)),
                    }
                }
            }
        }
    }
    report(wrong);
}

#[test]
fn kernels_take_the_rows_arguments_in_order() {
    let mut wrong = Vec::new();
    for op in specs() {
        let arg = |name: &str, writes: bool| format!("{}T_{name}* {name}", if writes { "" } else { "const " });
        let mut want: Vec<_> = op.args.iter().map(|a| arg(a.name, a.access.writes())).collect();
        want.push("Params p".into());
        for section in sections(2, op.file).iter().filter(|s| s.op() == op.name) {
            let text = section.text.split_whitespace().collect::<Vec<_>>().join(" ");
            let declared = text.split("extern \"C\" __global__ void ").nth(1).unwrap_or("");
            let (head, rest) = declared.split_once(&format!("{}(", section.name)).unwrap_or(("?", ""));
            let got = rest.split(')').next().unwrap_or("");
            if got != want.join(", ") || !(head.is_empty() || head.starts_with("__launch_bounds__(")) {
                wrong.push(format!(
                    "kernels/{}.cu: {} must take ({}), got ({got})",
                    op.file,
                    section.name,
                    want.join(", ")
                ));
            }
        }
    }
    report(wrong);
}

/// A kernel waits for the one before it in its first line (`cuda_text.rs`): nothing may be read before that.
#[test]
fn kernels_can_wait_before_they_read() {
    let mut wrong = Vec::new();
    let folder = |dir: &str| entries(dir).into_iter().filter(|path| path.extension().is_some_and(|e| e == "cu"));
    for path in folder("kernels").chain(folder("kernels/fast")) {
        let text = read(&path);
        let (common, sections) = kernel_text::parse(&text).unwrap();
        let mut fail = |what: &str| wrong.push(format!("{}: {what}", path.display()));
        if common.contains("__global__") {
            fail("an entry point that belongs to no op");
        }
        for section in sections {
            let mut entries = section.text.split("__global__");
            let (before, after) = (entries.next().unwrap_or(""), entries.next().unwrap_or(""));
            let head = after.split('{').next().unwrap_or("");
            if !before.ends_with("extern \"C\" ") || entries.next().is_some() || head.contains("//") {
                fail(&format!("{}: one entry point, whose head is no more than that", section.name));
            }
        }
        // such loads may be moved to before the wait
        if ["__restrict__", "__ldg", "ld.global.nc"].iter().any(|word| text.contains(word)) {
            fail("memory that is said to be constant");
        }
    }
    report(wrong);
}

/// (loaded, stored) names: `ld_x(`, `ld1_x(`, `st4_x(`, `stw_x(` …
fn accesses(text: &str) -> (BTreeSet<&str>, BTreeSet<&str>) {
    // `p.ld_x` is a row stride: only what is called counts
    let calls =
        || text.split('(').filter_map(|before| before.rsplit(|c: char| !c.is_alphanumeric() && c != '_').next());
    (
        calls().filter_map(|call| accessed(call, "ld")).collect(),
        calls().filter_map(|call| accessed(call, "st")).collect(),
    )
}

/// The text as each use of its parts fills them (src/backend/wgpu/expand.rs).
fn filled(text: &str) -> String {
    let words =
        |kind: &'static str| text.lines().filter_map(move |line| line.strip_prefix(kind)).map(str::split_whitespace);
    let fill = |with: Vec<&str>| {
        let part = words("#part ").map(|part| part.collect::<Vec<_>>()).find(|part| part[0] == with[0]).unwrap();
        part.iter()
            .zip(&with)
            .skip(1)
            .fold(text.to_string(), |text, (hole, one)| text.replace(&format!("${hole}"), one))
    };
    words("#use ").map(|with| fill(with.collect())).collect()
}

/// `x` of `ld_x`, `ld1_x` and `ldw_x` where `kind` is `ld`.
fn accessed<'a>(call: &'a str, kind: &str) -> Option<&'a str> {
    let rest = call.strip_prefix(kind)?;
    rest.strip_prefix(|c: char| c.is_ascii_digit() || c == 'w').unwrap_or(rest).strip_prefix('_')
}

#[test]
fn shaders_use_the_arguments_as_the_row_says() {
    let mut wrong = Vec::new();
    for op in specs() {
        let mut seen = BTreeSet::new();
        let stages = sections(1, op.file);
        let stages: Vec<_> = stages.iter().filter(|s| s.op() == op.name).collect();
        let text = read(format!("shaders/{}.wgsl", op.file));
        let common = kernel_text::parse(&text).unwrap().0;
        for section in &stages {
            let mut fail = |what: String| wrong.push(format!("shaders/{}.wgsl: {}: {what}", op.file, section.name));
            let code = section.text.split_whitespace().collect::<Vec<_>>().join(" ");
            if !code.contains("@compute") || !code.contains(&format!("fn {}(", section.name)) {
                fail("no entry point of that name".into());
            }
            if code.contains("@binding") {
                fail("bindings come from the row".into());
            }
            let (loaded, stored) = accesses(section.text);
            for name in loaded.iter().chain(&stored).filter(|n| **n != "scratch") {
                let Some(arg) = op.args.iter().find(|a| a.name == *name) else {
                    fail(format!("`{name}` is no argument of the row"));
                    continue;
                };
                if stored.contains(name) && !arg.access.writes() {
                    fail(format!("`{name}` is only read, but stored to"));
                }
                // a later stage, or a later window, may read what an earlier one has written
                let once = stages.len() == 1 && !section.text.contains("WINDOWED");
                let again = READ_AGAIN.contains(&(op.name, *name));
                if loaded.contains(name) && arg.access == Access::Write && once && !again {
                    fail(format!("`{name}` is only written, but loaded"));
                }
            }
            seen.extend(loaded.into_iter().chain(stored).map(str::to_string));
        }
        let included = common.lines().filter_map(|line| line.strip_prefix("#include "));
        let shared: String = included.map(|name| filled(&read(format!("shaders/shared/{name}.wgsl")))).collect();
        for text in [common, &shared] {
            let (loaded, stored) = accesses(text);
            seen.extend(loaded.into_iter().chain(stored).map(str::to_string));
        }
        let unused = op.args.iter().filter(|a| !stages.is_empty() && !seen.contains(a.name)).map(|a| a.name);
        wrong.extend(
            unused
                .filter(|a| !UNUSED.contains(&(op.name, a)))
                .map(|a| format!("{}: the shader never uses `{a}`", op.name)),
        );
    }
    report(wrong);
}

/// (op, argument) that a shader may leave alone.
const UNUSED: &[(&str, &str)] = &[];

/// Lowest first. A module may name only itself and what stands before it.
const LAYERS: &[&str] =
    &["error", "dtype", "rng", "io", "data", "ops", "backend", "model", "infer", "export", "train", "serve", "cli"];

#[test]
fn modules_point_strictly_down() {
    let mut wrong = Vec::new();
    for path in entries("src").iter().filter(|p| !["lib", "main"].contains(&stem(p))) {
        let Some(rank) = LAYERS.iter().position(|layer| *layer == stem(path)) else {
            wrong.push(format!("{} has no place in LAYERS", path.display()));
            continue;
        };
        for source in if path.is_dir() { sources(path) } else { vec![path.clone()] } {
            let text = read(&source);
            if text.contains("crate::{") {
                wrong.push(format!("{}: one `use crate::…` line per layer", source.display()));
            }
            let used = text.split("crate::").skip(1).map(ident);
            // from a layer's top file, `super` is the crate
            let top = source == *path || source == path.join("mod.rs");
            let around =
                text.split("super::").skip(if top { 1 } else { usize::MAX }).map(ident).filter(|n| LAYERS.contains(n));
            let above: BTreeSet<_> = used.chain(around).filter(|n| LAYERS[rank + 1..].contains(n)).collect();
            wrong.extend(above.iter().map(|n| format!("{} uses {n}, which stands above it", source.display())));
        }
    }
    report(wrong);
}

/// Flat tables may be as long as what they list.
const TABLES: &[&str] = &["src/ops/table.rs"];
/// (file, its own limit, why).
const LONGER: &[(&str, usize, &str)] =
    &[("shaders/attention.wgsl", 300, "the forward and three backward stages walk the same tiles")];

#[test]
fn files_are_short_enough_to_read() {
    let mut wrong = Vec::new();
    let mut check = |path: &Path, limit: usize| {
        let lines = read(path).lines().count();
        let limit = LONGER.iter().find(|(file, ..)| path == Path::new(file)).map_or(limit, |(_, own, _)| *own);
        if lines > limit && !TABLES.iter().any(|t| path == Path::new(t)) {
            wrong.push(format!("{}: {lines} lines, at most {limit}", path.display()));
        }
    };
    for file in files() {
        check(format!("src/ops/{file}.rs").as_ref(), 250);
        check(format!("shaders/{file}.wgsl").as_ref(), 200);
        check(format!("kernels/{file}.cu").as_ref(), 250);
    }
    sources("src").iter().for_each(|path| check(path, 500));
    ["burn/src", "burn/tests"].iter().flat_map(sources).for_each(|path| check(&path, 400));
    sources("burn/examples").iter().for_each(|path| check(path, 120));
    report(wrong);
}

/// README's table: what each op makes of what, and the backends that have it.
fn ops_table() -> String {
    let mut table = String::from("| op | | cpu | wgpu | cuda |\n|---|---|---|---|---|\n");
    for op in specs() {
        let names = |written: bool| {
            let args = op.args.iter().filter(|a| a.access.writes() == written).map(|a| a.name);
            args.collect::<Vec<_>>().join(", ")
        };
        let has = |place| if sections(place, op.file).iter().any(|s| s.op() == op.name) { "yes" } else { "no" };
        let flow = [names(true), names(false)].join(" ← ");
        let flow = flow.trim_end_matches(" ← ");
        table += &format!("| `{}` | {flow} | yes | {} | {} |\n", op.name, has(1), has(2));
    }
    table
}

#[test]
fn readme_lists_the_ops() {
    let readme = read("README.md");
    let table = readme.split_once("<!-- ops -->\n").and_then(|(_, rest)| rest.split_once("<!-- /ops -->"));
    let (table, _) = table.expect("README.md has the ops between <!-- ops --> and <!-- /ops -->");
    let want = ops_table();
    assert!(table == want, "README.md: between <!-- ops --> and <!-- /ops --> must stand\n{want}");
}

/// Each row names its models and their goldens, or says `not yet`; every `model_type` has a row and a golden.
#[test]
fn readme_lists_the_models() {
    let readme = read("README.md");
    let table = readme.split_once("<!-- models -->\n").and_then(|(_, rest)| rest.split_once("<!-- /models -->"));
    let (table, _) = table.expect("README.md has the models between <!-- models --> and <!-- /models -->");
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_string).collect::<Vec<_>>();
    let mut listed = BTreeSet::new();
    for row in table.lines().skip(2) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, models, _, goldens, _] = cells[..] else { panic!("README.md: {row}: three cells are wanted") };
        let goldens = quoted(goldens);
        if goldens.is_empty() {
            assert_eq!(cells[3], "not yet", "README.md: {row}");
            assert!(quoted(models).iter().all(|m| !model_types().any(|t| t == m)), "README.md: {row}: it is there");
            continue;
        }
        let of = |golden: &String| {
            let config = read(format!("tests/golden/{golden}/config.json"));
            let config: serde_json::Value = serde_json::from_str(&config).expect("a golden's config");
            config["model_type"].as_str().expect("a model_type").to_string()
        };
        let tested: BTreeSet<String> = goldens.iter().map(of).collect();
        assert_eq!(tested, quoted(models).into_iter().collect(), "README.md: {row}: the goldens are of others");
        listed.extend(tested);
    }
    assert_eq!(listed, model_types().map(str::to_string).collect(), "README.md: the table of models");
}
