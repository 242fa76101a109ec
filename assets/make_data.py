"""Makes real text for training from the documentation that ships with the Rust toolchain (MIT OR Apache-2.0).

    python make_data.py OUT      (needs `rustup component add rust-docs`; only Python's own library)

OUT/rustc_explain.jsonl: one chat a line, a question about a compiler error code and the compiler's own explanation.
OUT/rust_docs.txt: the prose of the books, the references and the standard library, documents separated by form feeds."""
import html.parser, json, os, pathlib, re, subprocess, sys

BOOKS = ["book", "reference", "nomicon", "rust-by-example", "edition-guide", "embedded-book", "cargo", "rustc", "rustdoc", "clippy", "std"]
QUESTIONS = ["What does the Rust compiler error {c} mean?", "Explain rustc error {c}.",
    "I get error[{c}] when I compile. What is wrong and how do I fix it?", "{c}: what causes it?"]
MAIN = [r"<main>(.*?)</main>", r'<section id="main-content"[^>]*>(.*?)</section></div></main>', r"<main[^>]*>(.*)</main>"]
DOCBLOCK = r'<div class="docblock[^"]*">(.*?)</div></details>|<div class="docblock">(.*?)</div>'


class Text(html.parser.HTMLParser):
    """The text of a page; block elements begin new lines."""
    SKIP = {"script", "style", "nav", "head", "button", "noscript", "svg", "rustdoc-toolbar"}
    BLOCK = {"p", "h1", "h2", "h3", "h4", "li", "pre", "div", "tr", "section", "dt", "dd", "br"}

    def __init__(self, page):
        super().__init__()
        self.out, self.skip = [], 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag in self.SKIP:
            self.skip += 1
        elif tag in self.BLOCK:
            self.out.append("\n")

    def handle_endtag(self, tag):
        if tag in self.SKIP:
            self.skip = max(0, self.skip - 1)
        elif tag in self.BLOCK:
            self.out.append("\n")

    def handle_data(self, data):
        if not self.skip:
            self.out.append(data)

    def clean(self):
        text = re.sub(r"[ \t]+\n", "\n", "".join(self.out))
        return re.sub(r"\n{3,}", "\n\n", text).strip()


def chats(docs):
    for i, page in enumerate(sorted((docs / "error_codes").glob("E*.html"))):
        run = subprocess.run(["rustc", "--explain", page.stem], capture_output=True, text=True)
        answer = run.stdout.strip()
        if run.returncode == 0 and len(answer) >= 80:
            question = QUESTIONS[i % len(QUESTIONS)].format(c=page.stem)
            yield {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def pages(docs):
    for book in BOOKS:
        for path in sorted((docs / book).rglob("*.html"), key=str):
            item = re.search(r"/(struct|enum|trait|macro|keyword|primitive|index)[^/]*\.html$", str(path))
            index = path.name in ("print.html", "toc.html", "searchindex.html", "all.html")
            if index or (book == "std" and not item) or path.stat().st_size > 400_000:
                continue
            page = path.read_text(encoding="utf8")
            main = next(filter(None, (re.search(pattern, page, re.S) for pattern in MAIN)), None)
            if main:
                body = main[1]
                if book == "std":
                    body = "\n".join(a or b for a, b in re.findall(DOCBLOCK, body, re.S)[:60])
                yield Text(body).clean()


def main(out):
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], capture_output=True, text=True, check=True).stdout.strip()
    docs = pathlib.Path(sysroot) / "share/doc/rust/html"
    with open(out / "rustc_explain.jsonl", "w", encoding="utf8") as f:
        for chat in chats(docs):
            f.write(json.dumps(chat, ensure_ascii=False) + "\n")
    documents = list(dict.fromkeys(text for text in pages(docs) if len(text) >= 400))
    (out / "rust_docs.txt").write_text("\n\f\n".join(documents), encoding="utf8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
