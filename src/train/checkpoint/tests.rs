//! A save that is cut at every change of the disk leaves the old state or the new one.
use super::*;
use disk::cut::{self, How};

/// What a trainer would write: two files that say which step they are of.
fn fill(step: u64) -> impl Fn(&Path) -> Result<()> {
    move |dir| {
        for name in ["model.safetensors", "optimizer.safetensors"] {
            let path = dir.join(name);
            fs::write(&path, format!("{name} of {step}").repeat(100)).map_err(Error::write(&path))?;
        }
        Ok(())
    }
}

fn open(dir: &Path) -> RunDir {
    RunDir::open(dir).unwrap()
}

fn steps(dir: &Path) -> Vec<u64> {
    let mut steps: Vec<u64> = listed(dir).unwrap().into_iter().map(|(step, _)| step).collect();
    steps.sort();
    steps
}

/// The newest step, whose content must be that step's; nothing may be damaged.
fn state(dir: &Path) -> u64 {
    let found = newest(dir).unwrap();
    assert!(found.damaged.is_empty(), "{:?}", found.damaged);
    found.newest.map_or(0, |(step, path)| {
        let text = fs::read_to_string(path.join("model.safetensors")).unwrap();
        assert!(text.starts_with(&format!("model.safetensors of {step}")));
        step
    })
}

#[test]
fn the_order_of_a_save() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path());
    cut::plan(None);
    run.save(7, 2, fill(7)).unwrap();
    let want = [
        "create_dir .tmp-checkpoint-7",
        "sync model.safetensors",
        "sync optimizer.safetensors",
        "write manifest.json",
        "sync manifest.json",
        "sync .tmp-checkpoint-7",
        "rename checkpoint-7",
    ];
    let trace = cut::trace();
    assert_eq!(trace[..want.len()], want);
    assert_eq!(trace[want.len()..], [format!("sync {}", dir.path().file_name().unwrap().to_string_lossy())]);
}

/// Saves `first`, then `steps` with the last one cut at change `k`. True when the save came to its end.
fn cut_at(k: usize, how: How, keep: usize, before: &[u64], last: u64) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let run = open(dir);
    for step in before {
        run.save(*step, 10, fill(*step)).unwrap();
    }
    let old = state(dir);
    let inodes = cut::inodes(dir).into_iter().map(|(inode, _)| inode).collect();
    cut::plan(Some((k, how)));
    let saved = run.save(last, keep, fill(last));
    let done = cut::trace().len() <= k;
    if how == How::Crash {
        cut::lose_unsynced(dir, &inodes);
    }
    cut::plan(None);
    let now = state(dir);
    assert!(now == old || now == last, "cut at {k}: at {now}, from {old} to {last}");
    assert!(saved.is_err() || now == last.max(old), "cut at {k}: saved, but at {now}");
    assert_eq!(saved.is_ok(), done, "cut at {k}: a failed change must come out");

    drop(run);
    let run = open(dir);
    assert_eq!(state(dir), now, "cut at {k}: tidying changed the state");
    let left: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(left.iter().all(|n| n == LOCK || step_of(n).is_some()), "cut at {k}: {left:?}");
    run.save(last, keep, fill(last)).unwrap();
    assert!(steps(dir).contains(&last) && steps(dir).len() <= keep, "{:?}", steps(dir));
    done
}

fn every_cut(keep: usize, before: &[u64], last: u64) {
    for how in [How::Error, How::Crash] {
        let points = (0..).take_while(|k| !cut_at(*k, how, keep, before, last)).count();
        assert!(points >= 8, "only {points} points were cut");
    }
}

#[test]
fn a_cut_save_leaves_the_old_state_or_the_new() {
    every_cut(2, &[], 10);
    every_cut(2, &[10, 20, 30], 40);
}

#[test]
fn a_limit_of_one_still_never_has_none() {
    every_cut(1, &[10, 20], 30);
}

#[test]
fn a_step_saved_again_replaces_itself() {
    every_cut(2, &[10, 20], 20);
    every_cut(1, &[20], 20);
}

#[test]
fn the_oldest_go_and_the_one_just_saved_stays() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path());
    for step in [9, 10, 100] {
        run.save(step, 2, fill(step)).unwrap();
    }
    assert_eq!(steps(dir.path()), [10, 100]);
    run.save(50, 2, fill(50)).unwrap();
    assert_eq!(steps(dir.path()), [50, 100]);
    assert_eq!(run.remove_after(50).unwrap().len(), 1);
    assert_eq!(steps(dir.path()), [50]);
}

#[test]
fn damage_is_found_and_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let run = open(dir.path());
    run.save(1, 9, fill(1)).unwrap();
    let newer = run.save(2, 9, fill(2)).unwrap();
    let file = newer.join("optimizer.safetensors");
    let good = fs::read(&file).unwrap();
    for at in [0, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&file, &bad).unwrap();
        let found = newest(dir.path()).unwrap();
        assert_eq!(found.newest.unwrap().0, 1);
        assert!(found.damaged[0].to_string().contains("optimizer.safetensors: damaged: blake3"), "{:?}", found.damaged);
    }
    fs::write(&file, &good[1..]).unwrap();
    assert!(verify(&newer).unwrap_err().to_string().contains("bytes wanted"));
    fs::remove_file(&file).unwrap();
    assert_eq!(verify(&newer).unwrap_err().exit_code(), 74);
}

#[test]
fn manifests_are_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = open(dir.path()).save(3, 9, fill(3)).unwrap();
    let path = checkpoint.join(MANIFEST);
    let good = fs::read_to_string(&path).unwrap();
    for (from, to, wanted) in [
        ("\"model.safetensors\"", "\"../checkpoint-3/model.safetensors\"", "leaves the checkpoint's folder"),
        ("\"format_version\": 1", "\"format_version\": 9", "this version of luthier reads 1, got 9"),
        ("\"step\": 3", "\"step\": 4", "is 4, but the folder is checkpoint-3"),
        ("{", "[", "not a manifest"),
    ] {
        fs::write(&path, good.replacen(from, to, 1)).unwrap();
        let e = verify(&checkpoint).unwrap_err();
        assert_eq!((e.to_string().contains(wanted), e.exit_code()), (true, 65), "{e}");
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(verify(&checkpoint).unwrap(), 3);
}

#[test]
fn names_that_are_no_checkpoints() {
    for name in ["checkpoint-", "checkpoint-07", "checkpoint-7x", "checkpoint-+7", "Checkpoint-7", "7"] {
        assert_eq!(step_of(name), None, "{name}");
    }
    assert_eq!(step_of("checkpoint-18446744073709551615"), Some(u64::MAX));
}

#[test]
fn one_run_per_folder() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path());
    let e = RunDir::open(dir.path()).unwrap_err();
    assert_eq!(e.exit_code(), 73);
    assert!(e.to_string().contains(&format!("process {} is using this folder", std::process::id())), "{e}");
    drop(first);
    // As a killed process leaves it: the file is there, the lock is not.
    fs::write(dir.path().join(LOCK), "999999999").unwrap();
    open(dir.path());
}

#[test]
fn a_published_file_is_the_old_or_the_new() {
    for k in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train_config.toml");
        fs::write(&path, "old").unwrap();
        let inodes = cut::inodes(dir.path()).into_iter().map(|(inode, _)| inode).collect();
        cut::plan(Some((k, How::Crash)));
        let done = disk::publish(&path, |tmp| disk::write(tmp, b"newer")).is_ok();
        cut::lose_unsynced(dir.path(), &inodes);
        cut::plan(None);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text == "newer" || (text == "old" && !done), "cut at {k}: {text:?}");
        if done {
            assert_eq!(k, 4, "write, sync, rename, sync");
            break;
        }
    }
}

#[test]
fn published_files_are_each_whole() {
    for k in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("adapter_config.json");
        fs::write(&path, "old").unwrap();
        let inodes = cut::inodes(dir.path()).into_iter().map(|(inode, _)| inode).collect();
        cut::plan(Some((k, How::Crash)));
        let done = disk::publish_all(dir.path(), |tmp| {
            disk::write(&tmp.join("adapter_config.json"), b"newer")?;
            disk::write(&tmp.join("adapter_model.safetensors"), b"tensors")
        });
        cut::lose_unsynced(dir.path(), &inodes);
        cut::plan(None);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text == "newer" || (text == "old" && done.is_err()), "cut at {k}: {text:?}");
        if let Ok(tensors) = fs::read_to_string(dir.path().join("adapter_model.safetensors")) {
            assert_eq!(tensors, "tensors");
        }
        if done.is_ok() {
            assert_eq!(disk::files(dir.path()).unwrap().len(), 2);
            break;
        }
    }
}
