"""How far PyTorch's float32 gradient norms are from float64: full fine-tuning of `train_full` again, in JAX at double precision.

    pip install jax safetensors && python float64.py train_full
"""
import jax, jax.numpy as jnp, numpy as np, json, sys, math
jax.config.update("jax_enable_x64", True)
from safetensors.numpy import load_file
d=sys.argv[1]; cfg=json.load(open(d+"/base/config.json")); W={k:jnp.array(v.astype(np.float64)) for k,v in load_file(d+"/base/model.safetensors").items()}
B=load_file(d+"/batches.safetensors"); T=json.load(open(d+"/trajectory.json"))
H,K=cfg["num_attention_heads"],cfg["num_key_value_heads"]; C=cfg["hidden_size"]; D=cfg.get("head_dim",C//H); L=cfg["num_hidden_layers"]; eps=cfg["rms_norm_eps"]; theta=cfg["rope_parameters"]["rope_theta"]
f=(1.0/ (theta ** (np.arange(0,D,2)/D))).astype(np.float32)
def norm(x,w): return x/jnp.sqrt((x*x).mean(-1,keepdims=True)+eps)*w
def rope(x,ang):
    c,s=jnp.cos(ang)[None,:,None,:],jnp.sin(ang)[None,:,None,:]; a,b=jnp.split(x,2,-1); return jnp.concatenate([a*c-b*s,b*c+a*s],-1)
def loss(P,ids,labels):
    W2=dict(W); W2.update(P); b,t=ids.shape; ang=jnp.array((np.arange(t,dtype=np.float32)[:,None]*f[None,:]).astype(np.float32).astype(np.float64))
    x=W2["model.embed_tokens.weight"][ids]
    for l in range(L):
        g=lambda n:W2[f"model.layers.{l}.{n}.weight"]; h=norm(x,g("input_layernorm"))
        q=rope((h@g("self_attn.q_proj").T).reshape(b,t,H,D),ang); k=rope((h@g("self_attn.k_proj").T).reshape(b,t,K,D),ang); v=(h@g("self_attn.v_proj").T).reshape(b,t,K,D)
        k=jnp.repeat(k,H//K,2); v=jnp.repeat(v,H//K,2)
        s=jnp.einsum("bihd,bjhd->bhij",q,k)/math.sqrt(D); s=jnp.where(jnp.tril(jnp.ones((t,t),bool)),s,-jnp.inf); a=jnp.einsum("bhij,bjhd->bihd",jax.nn.softmax(s,-1),v).reshape(b,t,H*D)
        x=x+a@g("self_attn.o_proj").T; h=norm(x,g("post_attention_layernorm")); x=x+(jax.nn.silu(h@g("mlp.gate_proj").T)*(h@g("mlp.up_proj").T))@g("mlp.down_proj").T
    z=norm(x,W2["model.norm.weight"])@W2["lm_head.weight"].T; lp=jax.nn.log_softmax(z[:,:-1],-1); lab=labels[:,1:]; m=lab>=0
    return -(jnp.take_along_axis(lp,jnp.where(m,lab,0)[...,None],-1)[...,0]*m).sum()/m.sum()
P=dict(W); G=jax.jit(jax.value_and_grad(loss)); M={k:0*v for k,v in P.items()}; V={k:0*v for k,v in P.items()}
for s in range(T["steps"]):
    l,g=G(P,B[f"ids{s%2}"],B[f"labels{s%2}"]); n=math.sqrt(sum(float((x*x).sum()) for x in g.values())); c=min(1.0,T["clip"]/(n+1e-6)); lr=T["lrs"][s]
    print(s,n,"torch err %.1e"%((T["grad_norms"][s]-n)/n))
    for k in P:
        gg=g[k]*c; M[k]=.9*M[k]+.1*gg; V[k]=.999*V[k]+.001*gg*gg; P[k]=P[k]*(1-lr*T["weight_decay"])-lr*(M[k]/(1-.9**(s+1)))/(jnp.sqrt(V[k]/(1-.999**(s+1)))+1e-8)
