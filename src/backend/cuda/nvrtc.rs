//! From CUDA text to a cubin: NVRTC, whose answers are kept on disk.
//!
//! Always to `sm_XX`, never to PTX: only then is inline PTX checked, and an older driver takes it.
use super::libs;
use crate::backend::kept::Kept;
use crate::error::{Error, Result};
use cudarc::nvrtc::{result, sys};
use std::ffi::{CStr, CString, c_char};

/// What the compiler made of a text.
pub struct Compiled {
    pub cubin: Vec<u8>,
    /// Warnings, and with [`VERBOSE`] the registers and spills of each kernel.
    pub log: String,
}

/// Makes the log tell registers and spills.
pub const VERBOSE: &str = "--ptxas-options=-v";

/// NVRTC's name of a compute capability; the chip's own instructions with it where it has some.
pub fn arch((major, minor): (i32, i32)) -> String {
    let own = if major >= 9 && (major, minor) != (12, 0) && (major, minor) != (12, 1) { "a" } else { "" };
    format!("sm_{major}{minor}{own}")
}

/// Compiles `text` for `arch` (`sm_90a`); `name` is what messages call it.
pub fn compile(name: &str, text: &str, arch: &str, options: &[&str]) -> Result<Compiled> {
    let all: Vec<String> = base_options(arch).into_iter().chain(options.iter().map(|o| o.to_string())).collect();
    compile_by(name, text, &all)
}

/// Compiles `text` by these options and no others, which name the architecture.
pub fn compile_by(name: &str, text: &str, options: &[String]) -> Result<Compiled> {
    present()?;
    let c = |s: &str| CString::new(s).map_err(|_| Error::Bug(format!("kernel of {name}: a zero byte in its text")));
    let by = options.join(" ");
    let fail =
        |what: &str, e: result::NvrtcError| Error::device("cuda", format!("compiling {name} ({by}): {what}: {e:?}"));
    let program = result::create_program(&c(text)?, Some(&c(&format!("{name}.cu"))?))
        .map_err(|e| fail("nvrtcCreateProgram", e))?;
    let program = Program(program);
    // SAFETY: the program lives until the end of this function.
    let done = unsafe { result::compile_program(program.0, options) };
    // SAFETY: as above; the log is a C string.
    let log = unsafe { result::get_program_log(program.0) }.map_err(|e| fail("nvrtcGetProgramLog", e))?;
    let log = text_of(&log);
    done.map_err(|e| Error::device("cuda", format!("compiling {name} ({by}): {e:?}\n{log}")))?;
    Ok(Compiled { cubin: cubin(&program).map_err(|e| fail("nvrtcGetCUBIN", e))?, log })
}

/// The cubin of `text`, from the disk if it was compiled before.
pub fn cached(name: &str, text: &str, arch: &str) -> Result<Vec<u8>> {
    present()?;
    let from = [text, &base_options(arch).join(" "), &format!("{:?}", version()?)];
    let kept = Kept::new(&format!("{name}-{arch}"), "cubin", &from);
    if let Some(cubin) = kept.read() {
        return Ok(cubin);
    }
    let cubin = compile(name, text, arch, &[])?.cubin;
    kept.write(&cubin);
    Ok(cubin)
}

/// The compiler's version, (major, minor).
pub fn version() -> Result<(i32, i32)> {
    present()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two integers to write to.
    let status = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    status.result().map_err(|e| Error::device("cuda", format!("nvrtcVersion: {e:?}")))?;
    Ok((major, minor))
}

fn present() -> Result<()> {
    match libs::missing("nvrtc") {
        Some(what) => Err(Error::device("cuda", what)),
        None => Ok(()),
    }
}

fn base_options(arch: &str) -> Vec<String> {
    vec![format!("--gpu-architecture={arch}"), "--std=c++17".into(), "--diag-suppress=177".into()]
}

struct Program(sys::nvrtcProgram);
impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `compile`, destroyed here alone; a failure leaks it and nothing else.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn cubin(program: &Program) -> std::result::Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // SAFETY: the second call gets as many bytes as the first asked for.
    unsafe {
        sys::nvrtcGetCUBINSize(program.0, &mut size).result()?;
        let mut cubin = vec![0u8; size];
        sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr() as *mut c_char).result()?;
        Ok(cubin)
    }
}

fn text_of(log: &[c_char]) -> String {
    if log.last() != Some(&0) {
        return String::new();
    }
    // SAFETY: the last element is the terminator.
    unsafe { CStr::from_ptr(log.as_ptr()) }.to_string_lossy().into_owned()
}
