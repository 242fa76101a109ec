"""Twenty steps of other optimizers than AdamW, from where `train_full` and `train_lora` start, on their batches.

    python make_optimizers.py OUT [CASE ..]

OUT holds `train_full` and `train_lora` (make_golden.py). Each case is a folder train_CASE: trajectory.json says where it starts, the
optimizer as our config has it, losses, gradient norms and learning rates; end.safetensors holds what was trained.
bitsandbytes' own 8-bit Lion on the CPU, six steps: optimizers/lion8.safetensors.
"""
import json, os, sys
sys.path.pop(0)  # a folder here is called bitsandbytes
import torch
import transformers
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file, save_file
from torch.optim import _muon

OUT, ONLY = sys.argv[1], sys.argv[2:]
STEPS, WARMUP = 20, 4


def newton_schulz(grad, coefficients, steps, eps):
    """torch's, but in the gradient's own float32: torch goes to bfloat16, where two right programs differ by a percent."""
    a, b, c = coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if grad.size(0) > grad.size(1) else x


_muon._zeropower_via_newtonschulz = newton_schulz


class Several:
    """Optimizers of disjoint weights as one, for one scheduler each."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers

    def step(self):
        for o in self.optimizers:
            o.step()

    def zero_grad(self):
        for o in self.optimizers:
            o.zero_grad()


def muon(model, lr, wd, **kw):
    matrix = lambda n, p: p.ndim == 2 and ".layers." in n
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    own, others = [p for n, p in named if matrix(n, p)], [p for n, p in named if not matrix(n, p)]
    own = torch.optim.Muon(own, lr=lr, weight_decay=wd, **kw)
    return Several(own, torch.optim.AdamW(others, lr=lr, weight_decay=wd)) if others else Several(own)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def lion(model, lr, wd):
    import bitsandbytes
    return Several(bitsandbytes.optim.Lion32bit(trained(model), lr=lr, betas=(0.9, 0.999), weight_decay=wd))


def sgd(model, lr, wd, **kw):
    return Several(torch.optim.SGD(trained(model), lr=lr, weight_decay=wd, **kw))


def loraplus(model, lr, wd, ratio):
    return Several(create_loraplus_optimizer(model, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=ratio, loraplus_weight_decay=wd))


# name: start, learning rate, decay, keys of our config, the optimizer
CASES = {
    "sgd": ("train_lora", 0.2, 0.01, dict(optim="sgd"), sgd),
    "sgd_momentum": ("train_lora", 0.03, 0.01, dict(optim="sgd", momentum=0.9, dampening=0.1), lambda *a: sgd(*a, momentum=0.9, dampening=0.1)),
    "sgd_nesterov": ("train_lora", 0.03, 0.01, dict(optim="sgd", momentum=0.9, nesterov=True), lambda *a: sgd(*a, momentum=0.9, nesterov=True)),
    "lion": ("train_lora", 2e-3, 0.1, dict(optim="lion_32bit"), lion),
    "muon": ("train_full", 2e-3, 0.01, dict(optim="muon"), muon),
    "muon_lora": ("train_lora", 5e-3, 0.01, dict(optim="muon", adjust_lr_fn="match_rms_adamw", nesterov=False, momentum=0.9), lambda *a: muon(*a, adjust_lr_fn="match_rms_adamw", nesterov=False, momentum=0.9)),
    "loraplus": ("train_lora", 5e-4, 0.01, dict(optim="adamw", loraplus_lr_ratio=8.0), lambda *a: loraplus(*a, 8.0)),
}


def start_of(start):
    m = transformers.AutoModelForCausalLM.from_pretrained(f"{OUT}/{start}/base", attn_implementation="eager", dtype=torch.float32)
    if os.path.exists(f"{OUT}/{start}/adapter_start"):
        m = PeftModel.from_pretrained(m, f"{OUT}/{start}/adapter_start", is_trainable=True)
    return m.train()


def run(name, start, lr, wd, keys, make):
    d = f"{OUT}/train_{name}"
    os.makedirs(d, exist_ok=True)
    model, t = start_of(start), load_file(f"{OUT}/{start}/batches.safetensors")
    opt, ps = make(model, lr, wd), trained(model)
    schedulers = [transformers.get_scheduler("cosine", o, num_warmup_steps=WARMUP, num_training_steps=STEPS) for o in opt.optimizers]
    losses, norms, lrs = [], [], []
    for s in range(STEPS):
        loss = model(input_ids=t[f"ids{s % 2}"], labels=t[f"labels{s % 2}"], use_cache=False).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(ps, 1.0)))
        lrs.append(schedulers[0].get_last_lr()[0])
        opt.step(); [x.step() for x in schedulers]; opt.zero_grad()
        losses.append(float(loss))
    end = {n.replace(".default.weight", ".weight"): p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    save_file(end, f"{d}/end.safetensors")
    said = dict(start=start, config=keys, steps=STEPS, lr=lr, weight_decay=wd, betas=[0.9, 0.999], eps=1e-8, clip=1.0, schedule="cosine",
                warmup=WARMUP, losses=losses, grad_norms=norms, lrs=lrs, trainable=sum(p.numel() for p in ps))
    json.dump(said, open(f"{d}/trajectory.json", "w"), indent=1)
    print("ok", name, losses[0], losses[-1], flush=True)


def lion8():
    import bitsandbytes as bnb
    g = torch.Generator().manual_seed(11)
    p = torch.nn.Parameter(torch.randn(4096, generator=g))
    opt, t = bnb.optim.Lion8bit([p], lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01), {"p0": p.detach().clone()}
    for s in range(6):
        p.grad = torch.randn(4096, generator=g)
        t[f"g{s}"] = p.grad.clone()
        opt.step()
    state = opt.state[p]
    t |= {"p6": p.detach().clone(), "state1": state["state1"].clone(), "absmax1": state["absmax1"].clone()}
    os.makedirs(f"{OUT}/optimizers", exist_ok=True)
    save_file({k: v.contiguous() for k, v in t.items()}, f"{OUT}/optimizers/lion8.safetensors")
    print("ok lion8", bnb.__version__, flush=True)


for name, case in CASES.items():
    if not ONLY or name in ONLY:
        run(name, *case)
if not ONLY or "lion8" in ONLY:
    lion8()
