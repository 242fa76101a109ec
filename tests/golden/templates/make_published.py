"""Golden renderings of the chat templates in published/, which are those that model families ship with:
python make_published.py [FOLDER OUT] (writes published.json next to itself).

Each template meets each conversation, as transformers renders it: the whole text, the text up to where the assistant speaks,
or null where the template refuses. A content of null is refused by Python where it is added to a text."""
import datetime, json, pathlib, sys
import transformers.utils.chat_template_utils as hf


class Day(datetime.datetime):
    """The day that luthier's strftime_now tells."""
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


hf.datetime = Day


def m(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id):
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "It's <the> \"weather\" in °C", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "Bonn"]},
    "days": {"type": "number", "default": 1.0}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}}]
CHATS = {
    "one": ([m("user", "What is 2 + 2?"), m("assistant", "4, of course.")], None),
    "system": ([m("system", "Be brief."), m("user", "Grüße, 世界 🙂"), m("assistant", "Hallo!\n\nWie geht's?")], None),
    "many": ([m("system", "S"), m("user", "a"), m("assistant", "b"), m("user", "a"), m("assistant", "b"), m("user", "c"),
        m("assistant", "d e")], None),
    "open": ([m("user", "first"), m("assistant", "second"), m("user", "third")], None),
    "question": ([m("user", "Who are you?")], None),
    "blanks": ([m("user", "  x \n"), m("assistant", "y\n  z"), m("user", "\n"), m("assistant", "\n end ")], None),
    "code": ([m("user", "Print it:\n```rust\nfn main() { println!(\"{{ x }} {% y %}\"); }\n```"),
        m("assistant", "```\n{{ x }} <b>&amp;</b> 'q' \"d\" \\n\n```")], None),
    "think": ([m("user", "q1"), m("assistant", "<think>\nlong\n</think>\n\nanswer one"), m("user", "q2"),
        m("assistant", "<think>\nwhy\n</think>\n\ntwo")], None),
    "no_think": ([m("system", "Be exact. /no_think"), m("user", "q"), m("assistant", "a")], None),
    "tools": ([m("user", "Hello"), m("assistant", "Hi, what city?")], TOOLS),
    "call": ([m("system", "You have tools."), m("user", "Weather in Bonn?"),
        m("assistant", None, tool_calls=[call("weather", {"city": "Köln", "days": 2, "more": [1.5, None, True]}, "abcdef123")]),
        m("tool", "{\"t\": 21.5}", tool_call_id="abcdef123", name="weather"), m("assistant", "It is 21.5 °C.")], TOOLS),
    "calls": ([m("user", "Weather in both?"),
        m("assistant", "", tool_calls=[call("weather", {"city": "Köln"}, "abcdef123"), call("weather", {"city": "Bonn"}, "abcdef124")]),
        m("tool", "21", tool_call_id="abcdef123", name="weather"), m("tool", "22", tool_call_id="abcdef124", name="weather"),
        m("assistant", "21 and 22."), m("user", "Thanks"), m("assistant", "Bye")], TOOLS),
    "twice": ([m("user", "a"), m("user", "b"), m("assistant", "c")], None),
}
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def render(template, messages, tools, prompt):
    try:
        out = hf.render_jinja_template([messages], tools=tools, chat_template=template, add_generation_prompt=prompt, **NAMES)
        return out[0][0]
    except Exception as e:
        print(f"  refused: {type(e).__name__}: {e}")
        return None


here = pathlib.Path(__file__).parent
folder, out = (pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])) if len(sys.argv) > 2 else (here / "published", here / "published.json")
cases = []
for file in sorted(folder.glob("*.jinja")):
    for name, (messages, tools) in CHATS.items():
        print(file.stem, name)
        text = file.read_text()
        # the trailing newline is the file's, not the template's
        text = text[:-1] if text.endswith("\n") else text
        both = [render(text, messages, tools, prompt) for prompt in [False, True]]
        cases.append({"template": file.stem, "chat": name, "text": both[0], "prompt": both[1]})
chats = {name: {"messages": messages, "tools": tools} for name, (messages, tools) in CHATS.items()}
out.write_text(json.dumps({"names": NAMES, "chats": chats, "cases": cases}, ensure_ascii=False, indent=1) + "\n")
print(len(cases), "cases,", out.stat().st_size, "bytes")
