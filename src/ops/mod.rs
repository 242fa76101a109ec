//! The op table, and one file per op: formula, params, reference forward and backward.
//!
//! To add an op: `src/ops/x.rs` (formula, [`params!`], reference), `shaders/x.wgsl`, `kernels/x.cu`, `tests/ops/x.rs`
//! (cases), one row in `table.rs`. Nothing in `backend/` changes. `tests/tidy.rs` says what is missing.
pub(crate) mod table;
use crate::dtype::{DType, Real};
use table::for_each_op;

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod attention_sink;
pub mod balance;
pub mod bias;
pub mod cast;
pub mod clamped_swiglu;
pub mod dora;
pub mod dropout;
pub mod dyn8;
pub mod embedding;
pub mod expert_bias;
pub mod expert_count;
pub mod fill;
pub mod fp8;
pub mod fp8_matmul;
pub mod gguf;
pub mod gradnorm;
pub mod group_router;
pub mod grouped;
pub mod int8;
pub mod latent;
pub mod layernorm;
pub mod lion;
pub mod logprob;
pub mod low_rank;
pub mod matmul;
pub mod muon;
pub mod mxfp4;
pub mod nf4;
pub mod noise;
pub mod paged_attention;
pub mod pages;
pub mod residual;
pub mod rmsnorm;
pub mod rope;
pub mod route;
pub mod routed_swiglu;
pub mod router;
pub mod rows;
pub mod sample;
pub mod sgd;
pub mod swiglu;
pub mod thin;

/// The letters a row may use, the same in Rust, WGSL and CUDA.
pub const DIMS: &[(&str, &str)] = &[
    ("N", "tokens (rows)"),
    ("C", "channels"),
    ("O", "output channels"),
    ("V", "vocabulary"),
    ("H", "query heads"),
    ("K", "kv heads"),
    ("D", "head size"),
    ("A", "channels of a head that RoPE turns"),
    ("U", "channels of a latent head that RoPE leaves alone"),
    ("Y", "channels of a latent head's value"),
    ("T", "time: keys of an attention, positions of a RoPE table"),
    ("F", "ffn"),
    ("E", "experts"),
    ("S", "slots of a token: the experts it is given to"),
    ("R", "adapter rank"),
    ("M", "routed rows: N·S tokens, sorted by expert"),
    ("P", "elements of a tensor, whatever its shape"),
    ("I", "rows of a product"),
    ("J", "columns of a product"),
    ("Q", "inner length of a product"),
    ("Z", "parts that a query's keys are cut into"),
];

/// For shapes: how many blocks of `block` hold `n`.
pub const fn ceil(n: usize, block: usize) -> usize {
    n.div_ceil(block)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Write,
    Add,
    Update,
    Read,
    OptRead,
}

impl Access {
    pub fn reads(self) -> bool {
        self != Access::Write
    }
    pub fn writes(self) -> bool {
        !matches!(self, Access::Read | Access::OptRead)
    }
}

/// What an argument may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elem {
    /// f32, f16 or bf16: a tag on the buffer.
    Float,
    /// Always f32: statistics, moments, tables.
    F32,
    U32,
    U8,
}

impl Elem {
    pub fn admits(self, dtype: DType) -> bool {
        match self {
            Elem::Float => dtype.is_float(),
            Elem::F32 => dtype == DType::F32,
            Elem::U32 => dtype == DType::U32,
            Elem::U8 => dtype == DType::U8,
        }
    }
    pub fn name(self) -> &'static str {
        match self {
            Elem::Float => "float32, float16 or bfloat16",
            Elem::F32 => "float32",
            Elem::U32 => "uint32",
            Elem::U8 => "uint8",
        }
    }
}

/// An argument as its row declares it.
#[derive(Debug)]
pub struct Arg {
    pub name: &'static str,
    pub access: Access,
    pub elem: Elem,
    pub shape: &'static str,
}

/// A row, as data.
#[derive(Debug)]
pub struct Spec {
    pub name: &'static str,
    pub file: &'static str,
    pub params: &'static str,
    /// (name, type) of each field of the params, in order; types are u32 and f32.
    pub fields: &'static [(&'static str, &'static str)],
    pub dims: &'static [&'static str],
    pub args: &'static [Arg],
}

/// An argument's shape under given params.
#[derive(Debug)]
pub struct Extent {
    pub dims: Vec<usize>,
    /// Row stride, named as in the params.
    pub ld: Option<(&'static str, usize)>,
    pub present: bool,
}

impl Extent {
    /// Elements of a row, and from one row to the next.
    pub fn row(&self) -> (usize, usize) {
        let row = *self.dims.last().expect("a row's argument has a dim");
        (row, self.ld.map_or(row, |(_, ld)| ld))
    }
    pub fn elements(&self) -> usize {
        self.dims[..self.dims.len() - 1].iter().product::<usize>() * self.row().1
    }
}

/// An argument as a reference receives it.
pub enum Slice<'a, R> {
    Float(&'a [R]),
    FloatMut(&'a mut [R]),
    U32(&'a [u32]),
    U32Mut(&'a mut [u32]),
    U8(&'a [u8]),
    U8Mut(&'a mut [u8]),
    Absent,
}

impl<'a, R> Slice<'a, R> {
    fn opt_float(self) -> Option<&'a [R]> {
        match self {
            Slice::Float(s) => Some(s),
            Slice::FloatMut(s) => Some(s),
            _ => None,
        }
    }
    fn float(self) -> &'a [R] {
        self.opt_float().expect("a `read` argument is present")
    }
    fn float_mut(self) -> &'a mut [R] {
        let Slice::FloatMut(s) = self else { panic!("a written argument comes as Slice::FloatMut") };
        s
    }
    fn u32(self) -> &'a [u32] {
        let Slice::U32(s) = self else { panic!("a `read u32` argument comes as Slice::U32") };
        s
    }
    fn u32_mut(self) -> &'a mut [u32] {
        let Slice::U32Mut(s) = self else { panic!("a written u32 argument comes as Slice::U32Mut") };
        s
    }
    fn u8(self) -> &'a [u8] {
        match self {
            Slice::U8(s) => s,
            Slice::U8Mut(s) => s,
            _ => panic!("a `read u8` argument comes as Slice::U8"),
        }
    }
    fn u8_mut(self) -> &'a mut [u8] {
        let Slice::U8Mut(s) = self else { panic!("a written u8 argument comes as Slice::U8Mut") };
        s
    }
}

/// Σ terms in runs of 64, so that rounding does not grow with the length: f32 sums over a vocabulary stay good to 1e-6.
fn sum<R: Real>(terms: impl Iterator<Item = R>) -> R {
    let (mut total, mut run) = (R::from(0.0), R::from(0.0));
    for (i, term) in terms.enumerate() {
        run += term;
        if i % 64 == 63 {
            total += run;
            run = R::from(0.0);
        }
    }
    total + run
}

/// cap·tanh(x/cap): a score that stays within ±cap; 0 leaves it alone (Gemma 2, arXiv:2408.00118).
pub(crate) fn softcap<R: Real>(x: R, cap: f32) -> R {
    if cap == 0.0 { x } else { R::from(cap) * (x / R::from(cap)).tanh() }
}

/// Its derivative, from the result: 1 − (y/cap)².
pub(crate) fn softcap_slope<R: Real>(y: R, cap: f32) -> R {
    if cap == 0.0 { R::from(1.0) } else { R::from(1.0) - (y / R::from(cap)) * (y / R::from(cap)) }
}

/// Plain numbers handed to a kernel by value; the same struct in three languages.
pub trait Params: bytemuck::Pod {
    const FIELDS: &'static [(&'static str, &'static str)];
    /// What the row cannot say about the values; `Err` says what is wrong.
    fn check(&self) -> Result<(), String>;
}

/// Declares a params struct: `params! { /// doc Name { N: u32, eps: f32 } [wants condition, "message";]* }`.
macro_rules! params {
    ($(#[$meta:meta])* $name:ident { $( $(#[$doc:meta])* $field:ident : $ty:ident ),+ $(,)? }
     $( wants |$p:ident| $cond:expr, $msg:literal; )*) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
        pub struct $name { $( $(#[$doc])* pub $field: $ty ),+ }
        impl crate::ops::Params for $name {
            const FIELDS: &'static [(&'static str, &'static str)] = &[ $( (stringify!($field), stringify!($ty)) ),+ ];
            fn check(&self) -> Result<(), String> {
                $( { let $p = self; let fine: bool = $cond; if !fine { return Err(format!(concat!($msg, ", got {:?}"), self)); } } )*
                Ok(())
            }
        }
    };
}
pub(crate) use params;

/// What an access word stands for: a word of the row in, its meaning out.
#[rustfmt::skip]
macro_rules! access {
    (kind: opt read $($ty:ident)?) => { Access::OptRead };
    (kind: read $($ty:ident)?) => { Access::Read };
    (kind: write $($ty:ident)?) => { Access::Write };
    (kind: add $($ty:ident)?) => { Access::Add };
    (kind: update $($ty:ident)?) => { Access::Update };
    (elem: opt $access:ident $($ty:ident)?) => { access!(elem: $access $($ty)?) };
    (elem: $access:ident f32) => { Elem::F32 };
    (elem: $access:ident u32) => { Elem::U32 };
    (elem: $access:ident u8) => { Elem::U8 };
    (elem: $access:ident) => { Elem::Float };
    (slice: $s:expr, opt read $($ty:ident)?) => { $s.opt_float() };
    (slice: $s:expr, read u32) => { $s.u32() };
    (slice: $s:expr, read u8) => { $s.u8() };
    (slice: $s:expr, read $($ty:ident)?) => { $s.float() };
    (slice: $s:expr, $written:ident u32) => { $s.u32_mut() };
    (slice: $s:expr, $written:ident u8) => { $s.u8_mut() };
    (slice: $s:expr, $written:ident $($ty:ident)?) => { $s.float_mut() };
    (present: $p:ident.$arg:ident, opt read $($ty:ident)?) => { $p.$arg != 0 };
    (present: $p:ident.$arg:ident, $($always:ident)+) => { true };
}

macro_rules! stamp {
    ($( $(#[$doc:meta])* $file:ident :: $op:ident { $($D:ident),+ } (
        $( $arg:ident : $($acc:ident)+ [ $($dim:expr),+ $(; $ld:ident)? ] ),+ ; $params:ident ); )*) => {
        #[allow(non_camel_case_types, reason = "one name in the row, Rust, WGSL, CUDA and the tests")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Op { $( $(#[$doc])* $op ),* }

        impl Op {
            pub const ALL: &[Op] = &[ $( Op::$op ),* ];

            pub fn spec(self) -> &'static Spec {
                match self { $( Op::$op => &Spec {
                    name: stringify!($op), file: stringify!($file), params: stringify!($params),
                    fields: <$file::$params as Params>::FIELDS, dims: &[ $( stringify!($D) ),+ ],
                    args: &[ $( Arg { name: stringify!($arg), access: access!(kind: $($acc)+), elem: access!(elem: $($acc)+),
                        shape: stringify!([$($dim),+ $(; $ld)?]) } ),+ ],
                } ),* }
            }

            /// The text of the op's shader file.
            pub fn wgsl(self) -> &'static str {
                match self { $( Op::$op => include_str!(concat!("../../shaders/", stringify!($file), ".wgsl")) ),* }
            }

            /// The text of the op's kernel file.
            pub fn cuda(self) -> &'static str {
                match self { $( Op::$op => include_str!(concat!("../../kernels/", stringify!($file), ".cu")) ),* }
            }

            /// The value of each dim and the extent of each argument.
            pub fn extents(self, params: &[u8]) -> (Vec<usize>, Vec<Extent>) {
                match self { $( Op::$op => {
                    let p: $file::$params = bytemuck::pod_read_unaligned(params);
                    let [$($D),+] = [ $( p.$D as usize ),+ ];
                    (vec![ $( $D ),+ ], vec![ $( Extent {
                        dims: vec![ $( $dim ),+ ],
                        ld: None $( .or(Some((stringify!($ld), p.$ld as usize))) )?,
                        present: access!(present: p.$arg, $($acc)+),
                    } ),+ ])
                } ),* }
            }

            /// What the params say about themselves.
            pub fn check(self, params: &[u8]) -> Result<(), String> {
                match self { $( Op::$op => bytemuck::pod_read_unaligned::<$file::$params>(params).check() ),* }
            }

            /// Calls the plain Rust function of the same name; arguments in the row's order.
            pub fn reference<'a, R: Real + 'a>(self, args: impl IntoIterator<Item = Slice<'a, R>>, params: &[u8]) {
                let mut args = args.into_iter();
                let mut next = || args.next().expect("one slice per argument");
                match self { $( Op::$op => $file::$op::<R>(
                    $( access!(slice: next(), $($acc)+), )+ &bytemuck::pod_read_unaligned(params),
                ) ),* }
            }
        }
    };
}
for_each_op!(stamp);
