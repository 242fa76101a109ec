#!/usr/bin/env bash
# The pictures in the README, of a run of the quickstart. The page's wants Chromium; as root, CHROMIUM_FLAGS=--no-sandbox.
set -euo pipefail
cd "$(dirname "$0")/../.."
luthier=(cargo run --release --)
rm -rf runs/quickstart
"${luthier[@]}" train examples/quickstart.toml --backend cpu
"${luthier[@]}" runs frame runs/quickstart --step 43 >docs/images/tui.svg
# shellcheck disable=SC2086
chromium --headless --hide-scrollbars ${CHROMIUM_FLAGS:-} --window-size=1000,1130 \
  --screenshot=docs/images/report.png "file://$PWD/runs/quickstart/report.html"
