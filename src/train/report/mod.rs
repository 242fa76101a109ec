//! A run to be looked at: `report.html`, `loss.svg` and `loss.png`, made of nothing but what the run's folder holds, so that
//! they can be made again at any time; and several runs beside one another.
mod axis;
pub mod compare;
mod curves;
mod figure;
pub mod folder;
mod html;
mod png;
mod svg;
pub mod words;
use super::disk;
use crate::error::Result;
use folder::Folder;
use std::path::{Path, PathBuf};
pub use svg::escaped;

pub const PAGE: &str = "report.html";
pub const PICTURES: [&str; 2] = ["loss.svg", "loss.png"];

/// Writes the page and the pictures of the run in `dir` into it, each whole or not at all; gives their paths.
pub fn write(dir: &Path) -> Result<Vec<PathBuf>> {
    let run = Folder::read(dir)?;
    let loss = curves::loss(&run);
    let files = [
        (PAGE, html::page(&run).into_bytes()),
        (PICTURES[0], svg::document(&loss).into_bytes()),
        (PICTURES[1], png::encode(&loss)?),
    ];
    files.into_iter().map(|(name, content)| put(&dir.join(name), &content)).collect()
}

/// A file, whole or not at all.
fn put(path: &Path, content: &[u8]) -> Result<PathBuf> {
    let needed = content.len() as u64;
    disk::publish(path, |file| disk::write(file, content)).map_err(|e| disk::explained(e, needed))?;
    Ok(path.to_path_buf())
}
