"""Makes the tokenizer of the quickstart's base model: a byte-level BPE of 4096 tokens, with Llama 3's split pattern.

    python make_tokenizer.py TEXT OUT      (needs the package `tokenizers`)

TEXT holds documents separated by form feeds (`make_data.py` makes it); OUT gets tokenizer.json, tokenizer_config.json,
special_tokens_map.json and generation_config.json. The same TEXT gives the same bytes."""
import json, pathlib, sys
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB = 4096
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
BOS, EOS, _, TURN_END, PAD = range(5)
# Words with one leading mark, numbers of up to three digits, runs of punctuation, line breaks, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The words of the assistant and the end of its turn lie between the generation tags: the loss mask is read off them.
TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main(text, out):
    documents = text.read_text(encoding="utf8").split("\f")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in SPECIAL]
    tokenizer.train_from_iterator(documents, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A", pair=f"{SPECIAL[BOS]} $A {SPECIAL[BOS]}:1 $B:1", special_tokens=[(SPECIAL[BOS], BOS)])
    assert tokenizer.get_vocab_size() == VOCAB and [tokenizer.token_to_id(t) for t in SPECIAL] == list(range(5))

    def save(name, value):
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf8")

    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS], "pad_token": SPECIAL[PAD]}
    save("special_tokens_map.json", names)
    save("tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", **names, "clean_up_tokenization_spaces": False,
        "model_max_length": 2048, "chat_template": TEMPLATE})
    save("generation_config.json", {"bos_token_id": BOS, "eos_token_id": [EOS, TURN_END], "pad_token_id": PAD})
    size = sum(len(tokenizer.encode(d, add_special_tokens=False).ids) for d in documents[::50])
    print(f"{sum(len(d.encode()) for d in documents[::50]) / size:.2f} bytes a token")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
