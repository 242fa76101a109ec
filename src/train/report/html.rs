//! A run as one page that needs nothing else: no script, no other file, no network. Every text of the run is escaped.
use super::super::record::info::{Finding, RunInfo, Status};
use super::folder::{Folder, Sample, State};
use super::svg::{self, escaped};
use super::words::{bytes, duration, grouped};
use super::{curves, figure::Figure};
use std::fmt::Display;

const STYLE: &str = include_str!("page.css");

pub fn page(run: &Folder) -> String {
    let name = escaped(&run.name());
    let badge = run.state.name();
    let body = [
        format!("<header><h1>{name}</h1><span class=\"badge {badge}\">{badge}</span></header>\n{}", about(run)),
        problem(run),
        cards(run),
        drawn(run),
        samples(&run.samples),
        result(run),
        data(&run.info),
        facts(run),
        config(run),
    ];
    document(&run.name(), &body.concat())
}

pub fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';style-src 'unsafe-inline'\">\n\
         <title>{}</title>\n<style>\n{STYLE}{}\n</style></head>\n<body>\n{body}</body></html>\n",
        escaped(title),
        svg::style()
    )
}

pub fn framed(figure: &Figure) -> String {
    format!("<figure>{}</figure>\n", svg::element(figure))
}

/// Rows of a name and a value, without those that have none.
fn table(rows: &[(&str, Option<String>)]) -> String {
    let row = |(name, value): &(&str, Option<String>)| {
        let value = value.as_deref().filter(|value| !value.is_empty())?;
        Some(format!("<tr><th>{name}</th><td>{}</td></tr>\n", escaped(value)))
    };
    format!("<table>\n{}</table>\n", rows.iter().filter_map(row).collect::<String>())
}

fn about(run: &Folder) -> String {
    let info = &run.info;
    let parts = [&info.model.name, &info.model.method, &info.device.name, &info.started];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).map(|part| escaped(part)).collect();
    format!("<p>{}</p>\n", parts.join(" · "))
}

fn problem(run: &Folder) -> String {
    match &run.info.error {
        Some(error) if run.state != State::As(Status::Finished) => {
            format!("<p class=\"error\">{}</p>\n", escaped(error))
        }
        _ => String::new(),
    }
}

fn cards(run: &Folder) -> String {
    let info = &run.info;
    let loss = |x: f64| format!("{x:.4}");
    let mut cards: Vec<(String, String)> = Vec::new();
    let mut card = |value: Option<String>, what: String| cards.extend(value.map(|value| (value, what)));
    card(run.last("loss").map(loss), "last train loss".into());
    if let Some((step, least)) = run.least("eval_loss") {
        card(Some(loss(least)), format!("best eval loss, step {step}"));
    }
    card(Some(format!("{} / {}", run.step(), info.total_steps)), "steps".into());
    card((info.num_input_tokens_seen > 0).then(|| grouped(info.num_input_tokens_seen)), "tokens trained on".into());
    card(run.tokens_per_second().map(|x| grouped(x.round() as u64)), "tokens per second".into());
    card((info.memory_peak > 0).then(|| bytes(info.memory_peak)), "peak device memory".into());
    card((info.seconds > 0.0).then(|| duration(info.seconds)), "time".into());
    let shown =
        cards.iter().map(|(value, what)| format!("<div class=\"card\"><b>{value}</b><span>{what}</span></div>\n"));
    format!("<div class=\"cards\">\n{}</div>\n", shown.collect::<String>())
}

fn drawn(run: &Folder) -> String {
    match run.curve("loss").is_empty() && run.curve("eval_loss").is_empty() {
        true => "<p class=\"small\">No step has been logged yet.</p>\n".into(),
        false => framed(&curves::loss(run)) + &framed(&curves::health(run)),
    }
}

/// What the model said first to each prompt, and last.
fn samples(all: &[Sample]) -> String {
    let mut prompts: Vec<&str> = Vec::new();
    for sample in all {
        if !prompts.contains(&sample.prompt.as_str()) {
            prompts.push(&sample.prompt);
        }
    }
    if prompts.is_empty() {
        return String::new();
    }
    let said = |sample: &Sample| {
        let text = escaped(&sample.text);
        format!("<div><p class=\"small\">after step {}</p><pre>{text}</pre></div>", sample.step)
    };
    let pair = |prompt: &str| {
        let of: Vec<&Sample> = all.iter().filter(|sample| sample.prompt == prompt).collect();
        let ends = if of.len() > 1 { vec![of[0], of[of.len() - 1]] } else { of };
        let wanted = ends.iter().map(|sample| sample.reference.as_str()).find(|text| !text.is_empty());
        let wanted = wanted.map_or(String::new(), |text| {
            format!("<details><summary>what the record has there</summary><pre>{}</pre></details>\n", escaped(text))
        });
        let shown = ends.into_iter().map(said).collect::<String>();
        format!("<pre class=\"prompt\">{}</pre>\n<div class=\"pair\">{shown}</div>\n{wanted}", escaped(prompt))
    };
    format!("<h2>Samples</h2>\n{}", prompts.into_iter().map(pair).collect::<String>())
}

/// What there is of the run, and how it is used.
fn result(run: &Folder) -> String {
    let path = run.path.display().to_string();
    let at = |name: &str| run.path.join(name).is_file();
    let base = &run.info.model.name;
    let generate = "luthier generate --prompt \"…\"";
    let merged = "--format merged-16bit --out merged";
    let commands = match (at("adapter_model.safetensors"), at("config.json")) {
        (true, _) => {
            let input = format!("--model {} --adapter {}", quoted(base), quoted(&path));
            format!("{generate} {input}\nluthier export {input} {merged}")
        }
        (false, true) => format!("{generate} --model {}", quoted(&path)),
        (false, false) => {
            "luthier train CONFIG        # the same command again goes on from the newest checkpoint".into()
        }
    };
    let places = [("folder", Some(path)), ("checkpoints", Some(run.checkpoints.join(", ")))];
    format!("<h2>Result</h2>\n<pre>{}</pre>\n{}", escaped(&commands), table(&places))
}

/// As a POSIX shell reads it back.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@:=".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn data(info: &RunInfo) -> String {
    let d = &info.data;
    if d.train_examples == 0 {
        return String::new();
    }
    let n = |n: usize| grouped(n as u64);
    let [shortest, median, mean, late, longest] = d.lengths;
    let percent = 100.0 * d.targets as f64 / d.tokens.max(1) as f64;
    let rows = [
        ("examples", Some(format!("{} to train on, {} to evaluate on", n(d.train_examples), n(d.eval_examples)))),
        ("tokens", Some(format!("{}, of which {} ({percent:.1} %) are trained", n(d.tokens), n(d.targets)))),
        (
            "lengths",
            Some(format!(
                "shortest {shortest}, median {median}, mean {mean:.0}, 90 % up to {late}, longest {longest} tokens"
            )),
        ),
        ("padding", Some(format!("{:.1} % of what is computed", 100.0 * (1.0 - d.fill)))),
    ];
    let found = |f: &Finding| {
        let class = if f.warning { " class=\"warning\"" } else { "" };
        format!("<li{class}>{}</li>\n", escaped(&f.text))
    };
    let findings = d.findings.iter().map(found).collect::<String>();
    let findings = if findings.is_empty() { findings } else { format!("<ul>\n{findings}</ul>\n") };
    format!("<h2>Data</h2>\n{}{findings}", table(&rows))
}

fn facts(run: &Folder) -> String {
    fn joined(parts: &[Option<String>]) -> Option<String> {
        Some(parts.iter().flatten().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(", "))
    }
    fn some(text: impl Display) -> Option<String> {
        Some(text.to_string())
    }
    let info = &run.info;
    let (model, device, host) = (&info.model, &info.device, &info.host);
    let dirty = |dirty: bool| if dirty { ", with changes" } else { "" };
    let rows = [
        ("model", joined(&[some(&model.name), some(&model.model_type), some(&model.dtype)])),
        (
            "parameters",
            (model.parameters > 0).then(|| {
                let percent = 100.0 * model.trainable_parameters as f64 / model.parameters as f64;
                format!(
                    "{}, {} ({percent:.2} %) trained",
                    grouped(model.parameters),
                    grouped(model.trainable_parameters)
                )
            }),
        ),
        (
            "device",
            joined(&[
                some(&device.backend),
                some(&device.name),
                device.driver.as_ref().map(|driver| format!("driver {driver}")),
                device.memory.map(bytes),
            ]),
        ),
        (
            "host",
            joined(&[
                host.cpu.clone(),
                (host.threads > 0).then(|| format!("{} threads", host.threads)),
                host.memory.map(bytes),
                some(&host.os),
            ]),
        ),
        ("started", some(&info.started)),
        ("ended", info.ended.clone()),
        ("resumed from", some(info.resumed_from.join(", "))),
        ("command", some(info.command.iter().map(|arg| quoted(arg)).collect::<Vec<_>>().join(" "))),
        ("sources", info.git.as_ref().map(|git| format!("{}{}", git.commit, dirty(git.dirty)))),
        ("luthier", some(&info.luthier)),
    ];
    format!("<h2>Run</h2>\n{}", table(&rows))
}

fn config(run: &Folder) -> String {
    let text = escaped(run.config.trim_end());
    format!("<h2>Config</h2>\n<details><summary>config.toml, with every default</summary><pre>{text}</pre></details>\n")
}
