//! The text of one WGSL module: what the shader files leave out, because it depends on how the arguments are stored.
//!
//! Storage is words of 32 bits: one f32 or u32, two 16-bit values, four bytes. `W` elements are handled at a time as one `V`:
//! f32 when every float argument of the op is float32, else vec2<f32>. All `i` count elements of the argument:
//! ```text
//! float   ld_x(i) -> V            elements i .. i + W; i even where x is 16-bit; a lane past the row is not to be used
//!         st_x(i, v, rest)        the first min(W, rest) of them
//!         ld1_x(i) -> f32         one
//!         st1_x(i, v)             one; where x is 16-bit, by one thread per word only
//!         st2_x(i, v: vec2, rest) the first min(2, rest) of two, whatever W; i even where x is 16-bit
//!         ld4_x(i, rest) -> vec4  the first min(4, rest) of four, then zeros; i even where x is 16-bit
//!         st4_x(i, v, rest)       the first min(4, rest) of four
//!         ldr4_x(i, rest) -> vec2<u32>   as ld4, but packed as stored, and without branches: loads can run at once. 16-bit only
//!         widen_x(h) -> vec4      the four values of an ldr4
//!         ldh4_x(i) -> vec4<f16>, sth4_x(i, h)   four in the language's own f16; i a multiple of 4, x wide and f16, used so alone
//!         at4_x(i) -> u32         their place in the array x_
//! u32     ld_x(i) -> u32   st_x(i, v)
//! u8      ld_x(i) -> u32   ldw_x(w) -> u32 (word w)   stw_x(w, v, bytes): the first min(4, bytes) of word w
//! ```
//! Nothing outside the stored elements is ever changed: the other half of a word keeps what it had.
use super::expand::expand;
use crate::backend::kernel_text::{Names, Section};
use crate::dtype::DType;
use crate::ops::Elem;

/// Tensors may lie 3 bytes short of a word, and four elements may be read where a row has one more: allocations end this much later.
pub const SLACK: usize = 12;

/// An argument as its row declares it and its buffer stores it; `None` is an absent `opt` one.
#[derive(Clone, Debug)]
pub struct TextArg {
    pub name: &'static str,
    pub elem: Elem,
    pub dtype: Option<DType>,
    /// Four elements (from i, a multiple of 4) are one load or store. Only for arguments that are used by `ld4`, `ldr4` and `st4` alone.
    pub wide: bool,
}

/// Where the params live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamsIn {
    Immediates,
    /// A uniform buffer with a dynamic offset, in group 1.
    Uniform,
    /// A uniform buffer behind the arguments, in their group; each argument begins where its binding does: see `foreign`.
    Behind,
}

/// Everything a module is made from.
pub struct Request<'a> {
    /// What all sections of the file share.
    pub common: &'a str,
    pub section: &'a Section<'a>,
    /// Names and types of the params.
    pub fields: &'a [(&'static str, &'static str)],
    pub args: &'a [TextArg],
    pub consts: &'a [(&'static str, u64)],
    pub params_in: ParamsIn,
}

/// A module and how to bind it.
pub struct Module {
    pub text: String,
    /// The arguments that are bound, as binding 0, 1, …; their base offsets (in words) follow the params in this order.
    pub bound: Vec<usize>,
}

/// Helpers that every module sees.
const COMMON: &str = include_str!("../../../shaders/shared/common.wgsl");

/// Elements handled at a time.
pub fn width(args: &[TextArg]) -> u64 {
    let packed = |a: &TextArg| matches!(a.dtype, Some(DType::F16 | DType::Bf16));
    if args.iter().any(packed) { 2 } else { 1 }
}

/// Makes the module's text. Pure: the same request always gives the same text.
pub fn module(request: &Request) -> Result<Module, String> {
    let w = width(request.args);
    let names: Names = request.consts.iter().copied().chain([("W", w)]).collect();
    let code = expand(&[request.common, request.section.text].concat(), &names)?;
    let bound: Vec<usize> = (0..request.args.len()).filter(|i| uses_arg(&code, &request.args[*i])).collect();

    // directives of the language come first
    let (enable, code): (Vec<&str>, Vec<&str>) = code.lines().partition(|line| line.starts_with("enable "));
    let code = code.join("\n") + "\n";
    let mut text: String = enable.iter().map(|line| format!("{line}\n")).collect();
    text += &params(request, &bound);
    for (name, value) in request.consts {
        text += &format!("const {name} = {value}u;\n");
    }
    text += if w == 1 { LANES_1 } else { LANES_2 };
    for (binding, i) in bound.iter().enumerate() {
        let arg = &request.args[*i];
        let native = NATIVE.iter().any(|f| uses(&code, f, arg.name));
        let fits =
            |f: &str| if native { NATIVE.contains(&f) } else { !arg.wide || ["ld4", "ldr4", "st4"].contains(&f) };
        if ACCESSORS.iter().any(|f| !fits(f) && uses(&code, f, arg.name)) {
            return Err(format!(
                "`{}` is wide, but not used by ld4, ldr4 and st4 alone, nor as native f16 alone",
                arg.name
            ));
        }
        text += &accessors(&request.args[*i], binding, w, &code, request.params_in);
    }
    for arg in request.args {
        text += &format!("const has_{} = {};\n", arg.name, arg.dtype.is_some());
        if arg.dtype.is_none() {
            // a branch on `has_` is compiled all the same
            text += &format!("fn ld_{}(i: u32) -> V {{ return V(); }}\n", arg.name);
            text += &format!("fn ld1_{}(i: u32) -> f32 {{ return 0.0; }}\n", arg.name);
        }
    }
    Ok(Module { text: text + COMMON + &code, bound })
}

const LANES_1: &str = "const W = 1u;
alias V = f32;
fn sumv(v: V) -> f32 { return v; }
fn maxv(v: V) -> f32 { return v; }
fn lane(v: V, k: u32) -> f32 { return v; }
fn softcaps(v: V, cap: f32) -> V { return softcap(v, cap); }
fn by_chances(v: V, chance: u32, i: u32, seed: u32, stream: u32) -> V { return by_chance(v, chance, i, seed, stream); }
fn mask(v: V, rest: u32) -> V { return v; }
fn one_hot(k: u32) -> V { return f32(k == 0u); }
fn mask_with(v: V, other: f32, rest: u32) -> V { return v; }
";
const LANES_2: &str = "const W = 2u;
alias V = vec2<f32>;
fn sumv(v: V) -> f32 { return v.x + v.y; }
fn maxv(v: V) -> f32 { return max(v.x, v.y); }
fn lane(v: V, k: u32) -> f32 { return select(v.x, v.y, k == 1u); }
fn softcaps(v: V, cap: f32) -> V { return vec2(softcap(v.x, cap), softcap(v.y, cap)); }
fn by_chances(v: V, chance: u32, i: u32, seed: u32, stream: u32) -> V {
  return vec2(by_chance(v.x, chance, i, seed, stream), by_chance(v.y, chance, i + 1u, seed, stream));
}
fn one_hot(k: u32) -> V { return vec2(f32(k == 0u), f32(k == 1u)); }
fn mask(v: V, rest: u32) -> V { return mask_with(v, 0.0, rest); }
fn mask_with(v: V, other: f32, rest: u32) -> V { return vec2(v.x, select(other, v.y, rest > 1u)); }
";

/// The struct of params, with the base offset of each bound argument behind them.
fn params(request: &Request, bound: &[usize]) -> String {
    let mut text = String::from("struct Params {\n");
    for (name, ty) in request.fields {
        text += &format!("  {name}: {ty},\n");
    }
    for i in bound.iter().filter(|_| request.params_in != ParamsIn::Behind) {
        text += &format!("  base_{}: u32,\n", request.args[*i].name);
    }
    text + &match request.params_in {
        ParamsIn::Immediates => "}\nvar<immediate> p: Params;\n".to_string(),
        ParamsIn::Uniform => "}\n@group(1) @binding(0) var<uniform> p: Params;\n".to_string(),
        ParamsIn::Behind => format!("}}\n@group(0) @binding({}) var<uniform> p: Params;\n", bound.len()),
    }
}

const ACCESSORS: [&str; 13] =
    ["ld", "st", "ld1", "st1", "st2", "ld4", "st4", "ldr4", "ldh4", "sth4", "at4", "ldw", "stw"];
const NATIVE: [&str; 3] = ["ldh4", "sth4", "at4"];

fn uses_arg(code: &str, arg: &TextArg) -> bool {
    arg.dtype.is_some() && ACCESSORS.iter().any(|f| uses(code, f, arg.name))
}

/// Whether `code` calls accessor `f` of the argument.
fn uses(code: &str, f: &str, arg: &str) -> bool {
    let call = format!("{f}_{arg}(");
    let starts_word =
        |i: usize| i == 0 || !(code.as_bytes()[i - 1].is_ascii_alphanumeric() || code.as_bytes()[i - 1] == b'_');
    code.match_indices(&call).any(|(i, _)| starts_word(i))
}

/// The binding of an argument and those of its accessors that `code` calls.
fn accessors(arg: &TextArg, binding: usize, w: u64, code: &str, params_in: ParamsIn) -> String {
    let dtype = arg.dtype.expect("a bound argument is present");
    let native = NATIVE.iter().any(|f| uses(code, f, arg.name));
    let element = match (dtype == DType::F32, arg.wide) {
        _ if native => "vec4<f16>",
        (true, false) => "f32",
        (true, true) => "vec4<f32>",
        (false, false) => "u32",
        (false, true) => "vec2<u32>",
    };
    let (wide, all) = match (arg.elem, dtype) {
        _ if native => (NATIVE_F16.as_slice(), [].as_slice()),
        (Elem::U32, _) => ([].as_slice(), U32),
        (Elem::U8, _) => ([].as_slice(), U8),
        (_, DType::F32) if arg.wide => (WIDE_F32.as_slice(), [].as_slice()),
        (_, _) if arg.wide => (WIDE_PACKED.as_slice(), [].as_slice()),
        (_, DType::F32) => (if w == 1 { F32_1.as_slice() } else { F32_2.as_slice() }, F32),
        (_, _) => ([].as_slice(), PACKED),
    };
    let (unpack, pack) =
        if dtype == DType::F16 { ("unpack2x16float", "pack_f16") } else { ("unpack_bf16", "pack_bf16") };
    let mut text = format!("@group(0) @binding({binding}) var<storage, read_write> {}_: array<{element}>;\n", arg.name);
    let base = if params_in == ParamsIn::Behind { "0u".to_string() } else { format!("p.base_{}", arg.name) };
    for (f, body) in wide.iter().chain(all).filter(|(f, _)| uses(code, f, arg.name)) {
        let body = body.replace("BASE", &base).replace("MEM", &format!("{}_", arg.name));
        text += &format!("fn {f}_{}{}\n", arg.name, body.replace("UNPACK", unpack).replace("PACK", pack));
    }
    text
}

type Accessor = (&'static str, &'static str);

const F32_1: [Accessor; 2] =
    [("ld", "(i: u32) -> V { return MEM[BASE + i]; }"), ("st", "(i: u32, v: V, rest: u32) { MEM[BASE + i] = v; }")];
const F32_2: [Accessor; 2] = [
    ("ld", "(i: u32) -> V { let a = BASE + i; return vec2(MEM[a], MEM[a + 1u]); }"),
    ("st", "(i: u32, v: V, rest: u32) { let a = BASE + i; MEM[a] = v.x; if (rest > 1u) { MEM[a + 1u] = v.y; } }"),
];
const F32: &[Accessor] = &[
    (
        "st2",
        "(i: u32, v: vec2<f32>, rest: u32) { let a = BASE + i; MEM[a] = v.x; if (rest > 1u) { MEM[a + 1u] = v.y; } }",
    ),
    ("ld1", "(i: u32) -> f32 { return MEM[BASE + i]; }"),
    ("st1", "(i: u32, v: f32) { MEM[BASE + i] = v; }"),
    (
        "ld4",
        "(i: u32, rest: u32) -> vec4<f32> {
  let a = BASE + i;
  if (rest >= 4u) { return vec4(MEM[a], MEM[a + 1u], MEM[a + 2u], MEM[a + 3u]); }
  var v = vec4<f32>();
  if (rest > 0u) { v.x = MEM[a]; }
  if (rest > 1u) { v.y = MEM[a + 1u]; }
  if (rest > 2u) { v.z = MEM[a + 2u]; }
  return v;
}",
    ),
    (
        "st4",
        "(i: u32, v: vec4<f32>, rest: u32) {
  let a = BASE + i;
  if (rest > 0u) { MEM[a] = v.x; }
  if (rest > 1u) { MEM[a + 1u] = v.y; }
  if (rest > 2u) { MEM[a + 2u] = v.z; }
  if (rest > 3u) { MEM[a + 3u] = v.w; }
}",
    ),
];

const ST_PACKED: &str = "(i: u32, v: vec2<f32>, rest: u32) {
  let a = BASE + i / 2u;
  let h = PACK(v);
  if (rest > 1u) { MEM[a] = h; } else { MEM[a] = (MEM[a] & 0xffff0000u) | (h & 0xffffu); }
}";
const PACKED: &[Accessor] = &[
    ("ld1", "(i: u32) -> f32 { let v = UNPACK(MEM[BASE + i / 2u]); return select(v.x, v.y, i % 2u == 1u); }"),
    (
        "st1",
        "(i: u32, v: f32) {
  let a = BASE + i / 2u;
  let h = PACK(vec2(v, v));
  MEM[a] = select((MEM[a] & 0xffff0000u) | (h & 0xffffu), (MEM[a] & 0xffffu) | (h & 0xffff0000u), i % 2u == 1u);
}",
    ),
    ("ld", "(i: u32) -> vec2<f32> { return UNPACK(MEM[BASE + i / 2u]); }"),
    (
        "ldr4",
        "(i: u32, rest: u32) -> vec2<u32> {
  let x = MEM[BASE + select(0u, i / 2u, rest > 0u)];
  let y = MEM[BASE + select(0u, i / 2u + 1u, rest > 2u)];
  return first4_packed(vec2(x, y), rest);
}",
    ),
    WIDEN,
    ("st", ST_PACKED),
    ("st2", ST_PACKED),
    (
        "ld4",
        "(i: u32, rest: u32) -> vec4<f32> {
  let a = BASE + i / 2u;
  if (rest >= 4u) { return vec4(UNPACK(MEM[a]), UNPACK(MEM[a + 1u])); }
  var v = vec4<f32>();
  if (rest > 0u) { let h = UNPACK(MEM[a]); v.x = h.x; v.y = select(0.0, h.y, rest > 1u); }
  if (rest > 2u) { v.z = UNPACK(MEM[a + 1u]).x; }
  return v;
}",
    ),
    (
        "st4",
        "(i: u32, v: vec4<f32>, rest: u32) {
  let a = BASE + i / 2u;
  let h = PACK(v.xy);
  let g = PACK(v.zw);
  if (rest > 1u) { MEM[a] = h; } else if (rest > 0u) { MEM[a] = (MEM[a] & 0xffff0000u) | (h & 0xffffu); }
  if (rest > 3u) { MEM[a + 1u] = g; } else if (rest > 2u) { MEM[a + 1u] = (MEM[a + 1u] & 0xffff0000u) | (g & 0xffffu); }
}",
    ),
];

const WIDEN: Accessor = ("widen", "(h: vec2<u32>) -> vec4<f32> { return vec4(UNPACK(h.x), UNPACK(h.y)); }");

const NATIVE_F16: [Accessor; 3] = [
    ("at4", "(i: u32) -> u32 { return BASE / 2u + i / 4u; }"),
    ("ldh4", "(i: u32) -> vec4<f16> { return MEM[BASE / 2u + i / 4u]; }"),
    ("sth4", "(i: u32, h: vec4<f16>) { MEM[BASE / 2u + i / 4u] = h; }"),
];
const WIDE_F32: [Accessor; 2] = [
    (
        "ld4",
        "(i: u32, rest: u32) -> vec4<f32> {
  if (rest == 0u) { return vec4<f32>(); }
  return first4(MEM[(BASE + i) / 4u], rest);
}",
    ),
    (
        "st4",
        "(i: u32, v: vec4<f32>, rest: u32) {
  let a = (BASE + i) / 4u;
  if (rest >= 4u) { MEM[a] = v; } else { MEM[a] = select(MEM[a], v, vec4(rest) > vec4(0u, 1u, 2u, 3u)); }
}",
    ),
];
const WIDE_PACKED: [Accessor; 4] = [
    (
        "st4",
        "(i: u32, v: vec4<f32>, rest: u32) {
  let a = (BASE + i / 2u) / 2u;
  let h = vec2(PACK(v.xy), PACK(v.zw));
  if (rest >= 4u) { MEM[a] = h; } else { MEM[a] = first4_of(h, MEM[a], rest); }
}",
    ),
    (
        "ld4",
        "(i: u32, rest: u32) -> vec4<f32> {
  if (rest == 0u) { return vec4<f32>(); }
  let h = MEM[(BASE + i / 2u) / 2u];
  return first4(vec4(UNPACK(h.x), UNPACK(h.y)), rest);
}",
    ),
    (
        "ldr4",
        "(i: u32, rest: u32) -> vec2<u32> {
  return first4_packed(MEM[(BASE + select(0u, i / 2u, rest > 0u)) / 2u], rest);
}",
    ),
    WIDEN,
];

const U32: &[Accessor] =
    &[("ld", "(i: u32) -> u32 { return MEM[BASE + i]; }"), ("st", "(i: u32, v: u32) { MEM[BASE + i] = v; }")];

const U8: &[Accessor] = &[
    ("ld", "(i: u32) -> u32 { return (MEM[BASE + i / 4u] >> (8u * (i % 4u))) & 255u; }"),
    ("ldw", "(w: u32) -> u32 { return MEM[BASE + w]; }"),
    (
        "stw",
        "(w: u32, v: u32, bytes: u32) {
  let a = BASE + w;
  if (bytes >= 4u) { MEM[a] = v; } else { let m = (1u << (8u * bytes)) - 1u; MEM[a] = (MEM[a] & ~m) | (v & m); }
}",
    ),
];
