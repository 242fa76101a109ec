"""Renders chat templates with transformers: what luthier must render, byte for byte, and where the assistant speaks.

    python make_golden.py      (needs `transformers` and `jinja2`; writes golden.json next to itself)

Each template is written with {% generation %} tags, whose ranges transformers reports. A second case has the tags taken out:
luthier then finds the same ranges from the structure of the conversation."""
import json, pathlib, re
from transformers.utils.chat_template_utils import render_jinja_template

T = {}
T["chatml"] = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
# In the manner of Llama 3: BOS before the first message, contents trimmed, `set` and string filters.
T["llama3"] = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set header = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' %}"
    "{% if loop.index0 == 0 %}{% set header = bos_token + header %}{% endif %}{{ header }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
# In the manner of Zephyr: block tags on lines of their own, so that trim_blocks and lstrip_blocks matter.
T["zephyr"] = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
    {{- '<|system|>\n' + message['content'] + eos_token -}}
    {{ '\n' }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}

{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>\n' }}
{%- endif %}
{% endfor %}"""
# In the manner of Gemma: roles renamed, a system message folded into the first turn, exceptions.
T["gemma"] = """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate user/assistant') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
    {%- if role == 'model' -%}{%- generation -%}{{ message['content'] | trim }}{{ '<end_of_turn>' }}{%- endgeneration -%}
    {%- else -%}{{ message['content'] | trim }}{{ '<end_of_turn>' }}{%- endif -%}{{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""
# In the manner of Mistral: no generation prompt of its own, the turn ends with EOS.
T["mistral"] = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}")
# In the manner of Phi-3: EOS closes the whole conversation, so an earlier turn loses its end.
T["phi3"] = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}"
    "{% if loop.last and not add_generation_prompt %}{{ '\n' + eos_token }}{% endif %}{% endgeneration %}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}"
    "{% else %}{{ message['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}")
# In the manner of Qwen 3: tools, namespaces, reasoning that earlier turns lose, methods of str.
T["qwen3"] = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- '# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == 'user' and message.content is string and not message.content.startswith('<tool_response>') %}
        {%- set ns.searching = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}{%- generation %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}{{- content }}{%- endif %}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- if not loop.first or content %}{{- '\n' }}{%- endif %}
                {%- if call.function %}{%- set call = call.function %}{%- endif %}
                {{- '<tool_call>\n{"name": "' + call.name + '", "arguments": ' }}
                {{- call.arguments if call.arguments is string else call.arguments | tojson }}
                {{- '}\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>' }}{%- endgeneration %}{{- '\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
# In the manner of gpt-oss: the last turn ends with another token than the ones before.
T["oss"] = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ '<|channel|>final<|message|>' + message['content'] }}"
    "{% if loop.last %}{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}{% endgeneration %}"
    "{% else %}{{ '<|message|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}")
# In the manner of Qwen 3.5 and DeepSeek-R1: the generation prompt opens a reasoning that no message shows.
T["forced"] = T["chatml"].replace("{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}")
# Macros, indented JSON, break, printed Python values.
T["odd"] = """{%- macro show(value, name='x') -%}<{{ name }}>{{ value }}</{{ name }}>{%- endmacro -%}
{%- for tool in tools or [] %}{{ tool | tojson(indent=4) | indent(2) }}
{% if loop.index == 1 %}{% break %}{% endif %}{% endfor -%}
{{ show(tools is none) }}{{ show([1, 2.5, none, 'a\\'b'], name='y') }}{{ messages | map(attribute='role') | join(',') }}
{% for message in messages if message.role != 'system' %}
    {# a comment #}
    {{- '<|im_start|>' ~ message.role.upper() ~ loop.index ~ '\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content | default('', true) }}<|im_end|>{% endgeneration %}
    {%- else %}{{ message.content }}<|im_end|>{% endif %}
{{ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>ASSISTANT' ~ ((messages | rejectattr('role', 'equalto', 'system') | list | length) + 1) ~ '\n' }}{% endif %}"""

SPECIAL = sorted({"<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin_of_text|>",
    "<|user|>", "<|system|>", "<|assistant|>", "</s>", "<s>", "<start_of_turn>", "<end_of_turn>", "<|end|>", "<|start|>", "<|channel|>",
    "<|message|>", "<|return|>"})
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def m(role, content, **more):
    return {"role": role, "content": content, **more}


TOOLS = [{"type": "function", "function": {"name": "weather", "description": "It's <the> \"weather\"", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "number", "default": 1.0}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "parameters": {}}}]
C = {
    "one": [m("user", "What is 2 + 2?"), m("assistant", "4, of course.")],
    "system": [m("system", "Be brief."), m("user", "Grüße, 世界 🙂"), m("assistant", "Hallo!\n\nWie geht's?")],
    "many": [m("system", "S"), m("user", "a"), m("assistant", "b"), m("user", "a"), m("assistant", "b"), m("user", "c"), m("assistant", "d e")],
    "open": [m("user", "first"), m("assistant", "second"), m("user", "third")],
    "blanks": [m("user", "  x \n"), m("assistant", "y\n  z"), m("user", "\n"), m("assistant", "end ")],
}
THINK = [m("user", "q1"), m("assistant", "<think>\nlong\n</think>\n\nanswer one"), m("user", "q2"), m("assistant", "two", reasoning_content="why"),
    m("user", "q3"), m("assistant", "three")]
CALLS = [m("user", "Weather in Bonn?"),
    m("assistant", "Let me see.", tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}]),
    m("tool", "{\"t\": 21.5}"), m("assistant", "It is 21.5 °C."), m("user", "Thanks"), m("assistant", "Bye")]


def case(name, template, messages, tools):
    def render(**kwargs):
        return render_jinja_template([messages], tools=tools, chat_template=template, **NAMES, **kwargs)
    texts, spans = render(return_assistant_tokens_mask="generation" in template)
    text = texts[0]
    at = lambda i: len(text[:i].encode())
    spans = [[at(a), at(b)] for a, b in spans[0]] if spans else None
    return {"name": name, "template": template, "messages": messages, "tools": tools, "text": text,
            "prompt": render(add_generation_prompt=True)[0][0], "assistant": spans}


cases = []
for name, template in T.items():
    chats = [(n, c, None) for n, c in C.items()]
    if name == "qwen3":
        chats += [("think", THINK, None), ("calls", CALLS, TOOLS)]
    if name == "odd":
        chats += [("tools", C["many"], TOOLS)]
    for chat, messages, tools in chats:
        tagged = case(f"{name}/{chat}", template, messages, tools)
        bare = re.sub(r"endgeneration( *-?%})", r"endif\1", re.sub(r"({%-? *)generation", r"\1if true", template))
        bare = case(f"{name}/{chat}/bare", bare, messages, tools)
        assert tagged["text"] == bare["text"] and tagged["prompt"] == bare["prompt"], tagged["name"]
        bare["assistant"] = tagged["assistant"]
        cases += [tagged, bare]
out = pathlib.Path(__file__).with_name("golden.json")
# Each template is written once.
sources = {}
for c in cases:
    c["template"] = sources.setdefault(c["template"], len(sources))
out.write_text(json.dumps({"special": SPECIAL, "names": NAMES, "templates": list(sources), "cases": cases}, ensure_ascii=False, indent=1) + "\n")
print(len(cases), "cases,", out.stat().st_size, "bytes")
