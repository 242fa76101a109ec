//! One row per kernel: `file::op{dims}(outputs, inputs; Params)`.
//!
//! Access  `write` sets every element and never reads · `add` accumulates · `update` reads and writes
//!         in place · `read` · `opt read` may be absent, and then the u32 field of its name in the params is 0
//! Type    none: f32, f16 or bf16 as the buffer says · `f32` · `u32` · `u8`
//! Shape   `[N, ceil(P, 64)]`: expressions over the row's dims, which are u32 fields of the params
//!         `[N, O; ld_inp]`: rows of O elements, ld_inp elements apart; the pads belong to the buffer
macro_rules! for_each_op { ($then:ident) => { $then! {
    /// out[n,:] = scale·weight[ids[n],:].
    embedding::embedding_forward{N, V, C}(out: write [N, C], ids: read u32 [N], weight: read [V, C]; Embedding);
    /// dweight[ids[n],:] += scale·dout[n,:]. `order` lists the tokens sorted by id (stable), so that every sum has one owner.
    embedding::embedding_backward{N, V, C}(dweight: add [V, C], dout: read [N, C], ids: read u32 [N], order: read u32 [N]; Embedding);

    /// out[n,:] = weight[ids[n],:] in bytes: the packed rows of a table.
    rows::rows_gather{N, V, C}(out: write u8 [N, C], ids: read u32 [N], weight: read u8 [V, C]; Rows);

    /// out[n,:] = inp[n,:]·rstd[n]·(weight + shift), with rstd[n] = 1/√(mean(inp[n,:]²) + eps).
    rmsnorm::rmsnorm_forward{N, C}(out: write [N, C], rstd: write f32 [N], inp: read [N, C], weight: read [C]; RmsNorm);
    /// sum = a + scale·b, and rmsnorm_forward of it as it is stored: the residual stream with what a branch adds, and the next norm.
    rmsnorm::rmsnorm_residual_forward{N, C}(out: write [N, C], rstd: write f32 [N], sum: write [N, C], a: read [N, C], b: read [N, C],
        weight: read [C]; RmsNormResidual);
    /// dinp += ∂L/∂inp. It accumulates: the residual stream's gradient is already there.
    rmsnorm::rmsnorm_backward{N, C}(dinp: add [N, C], dout: read [N, C], inp: read [N, C], weight: read [C], rstd: read f32 [N]; RmsNorm);
    /// dweight += ∂L/∂weight. Its own row: it reduces over N, rmsnorm_backward over C.
    rmsnorm::rmsnorm_backward_weight{N, C}(dweight: add f32 [C], dout: read [N, C], inp: read [N, C], rstd: read f32 [N]; RmsNorm);

    /// out = (inp − mean)·rstd·weight + bias, with the mean and 1/√(variance + eps) of each head's C channels; H is 1 for a norm of whole rows.
    layernorm::layernorm_forward{N, H, C}(out: write [N, H*C], mean: write f32 [N, H], rstd: write f32 [N, H], inp: read [N, H*C], weight: read [H, C],
        bias: opt read [H, C]; LayerNorm);
    /// dinp += ∂L/∂inp.
    layernorm::layernorm_backward{N, H, C}(dinp: add [N, H*C], dout: read [N, H*C], inp: read [N, H*C], weight: read [H, C], mean: read f32 [N, H],
        rstd: read f32 [N, H]; LayerNorm);
    /// dweight += ∂L/∂weight; the bias' gradient is bias_backward of dout.
    layernorm::layernorm_backward_weight{N, H, C}(dweight: add f32 [H, C], dout: read [N, H*C], inp: read [N, H*C], mean: read f32 [N, H],
        rstd: read f32 [N, H]; LayerNorm);

    /// out = alpha·a·bᵀ: a linear layer's forward (a = inp, b = weight).
    matmul::matmul_nt{I, J, Q}(out: write [I, J; ld_out], a: read [I, Q; ld_a], b: read [J, Q; ld_b]; MatMul);
    /// out += alpha·a·bᵀ.
    matmul::matmul_nt_add{I, J, Q}(out: add [I, J; ld_out], a: read [I, Q; ld_a], b: read [J, Q; ld_b]; MatMul);
    /// out = alpha·a·b: a linear layer's input gradient (a = dout, b = weight).
    matmul::matmul_nn{I, J, Q}(out: write [I, J; ld_out], a: read [I, Q; ld_a], b: read [Q, J; ld_b]; MatMul);
    /// out += alpha·a·b.
    matmul::matmul_nn_add{I, J, Q}(out: add [I, J; ld_out], a: read [I, Q; ld_a], b: read [Q, J; ld_b]; MatMul);
    /// out = alpha·aᵀ·b.
    matmul::matmul_tn{I, J, Q}(out: write [I, J; ld_out], a: read [Q, I; ld_a], b: read [Q, J; ld_b]; MatMul);
    /// out += alpha·aᵀ·b: a linear layer's weight gradient (a = dout, b = inp).
    matmul::matmul_tn_add{I, J, Q}(out: add [I, J; ld_out], a: read [Q, I; ld_a], b: read [Q, J; ld_b]; MatMul);

    /// dt = scale·dout·b and db += doutᵀ·t: both gradients of an adapter's out += t·bᵀ, for backends that read dout once for them.
    low_rank::low_rank_backward{N, O, R}(dt: write [N, R; ld_dt], db: add [O, R], dout: read [N, O], b: read [O, R], t: read [N, R; ld_t]; LowRank);

    /// out[n,:] += bias.
    bias::bias_forward{N, O}(out: update [N, O; ld_out], bias: read [O]; Bias);
    /// dbias += Σ_N dout[n,:].
    bias::bias_backward{N, O}(dbias: add f32 [O], dout: read [N, O; ld_dout]; BiasBackward);

    /// norm[o] = ‖weight[o,:] + scale·(b·a)[o,:]‖ of an adapted weight, from wa = weight·aᵀ and gram = a·aᵀ.
    dora::dora_norm{O, C, R}(norm: write f32 [O], weight: read [O, C], wa: read [O, R], b: read [O, R], gram: read [R, R]; DoraNorm);
    /// out[n,o] ·= magnitude[o]/norm[o].
    dora::dora_forward{N, O}(out: update [N, O], magnitude: read f32 [O], norm: read f32 [O]; Dora);
    /// dinp[n,o] = dout[n,o]·magnitude[o]/norm[o]; the norm is a constant.
    dora::dora_backward{N, O}(dinp: write [N, O], dout: read [N, O], magnitude: read f32 [O], norm: read f32 [O]; Dora);
    /// dmagnitude[o] += Σ_N dout[n,o]·inp[n,o]/norm[o].
    dora::dora_backward_weight{N, O}(dmagnitude: add f32 [O], dout: read [N, O], inp: read [N, O], norm: read f32 [O]; Dora);

    /// out = scale·inp where a hash of (index, seed, stream) is at least `drop`, else 0.
    dropout::dropout_forward{P}(out: write [P], inp: read [P]; Dropout);
    /// dinp += scale·dout where the forward kept it.
    dropout::dropout_backward{P}(dinp: add [P], dout: read [P]; Dropout);

    /// x[n,c] += magnitude[n]·(a hash of (index, seed, stream), uniform in [-1, 1)).
    noise::noise_forward{N, C}(x: update [N, C], magnitude: read f32 [N]; Noise);

    /// Rotates the first A channels of each head of x in place by its token's position, in pairs of halves or interleaved; `table` holds cos then sin per position.
    rope::rope_forward{N, H, D, A, T}(x: update [N, H*D; ld_x], table: read f32 [T, A], positions: read u32 [N]; Rope);
    /// The inverse rotation, in place: dx becomes the gradient of the unrotated x.
    rope::rope_backward{N, H, D, A, T}(dx: update [N, H*D; ld_x], table: read f32 [T, A], positions: read u32 [N]; Rope);

    /// out = softmax(softcap(scale·q·kᵀ))·v per head, query n seeing the keys span[n,0] <= j < span[n,1]; lse = log Σ exp of its scores.
    attention::attention_forward{N, T, H, K, D}(out: write [N, H*D], lse: write f32 [N, H], q: read [N, H*D; ld_q], k: read [T, K*D; ld_k],
        v: read [T, K*D; ld_v], span: read u32 [N, 2]; Attention);
    /// dq, dk, dv = ∂L/∂(q, k, v), from recomputed scores; dot[n,h] = Σ_D dout·out. Key j is seen by the queries reach[j,0] <= n < reach[j,1].
    attention::attention_backward{N, T, H, K, D}(dq: write [N, H*D; ld_q], dk: write [T, K*D; ld_k], dv: write [T, K*D; ld_v], dot: write f32 [N, H],
        dout: read [N, H*D], out: read [N, H*D], lse: read f32 [N, H], q: read [N, H*D; ld_q], k: read [T, K*D; ld_k], v: read [T, K*D; ld_v],
        span: read u32 [N, 2], reach: read u32 [T, 2]; Attention);

    /// pool[slots[n],:] = inp[n,:]; the other slots stay.
    pages::pages_write{N, T, C}(pool: update [T, C], inp: read [N, C], slots: read u32 [N]; Pages);
    /// As attention_forward of N·Z queries, row n of q being that of n·Z..n·Z+Z, with key j of all Z in slot pages[starts[n] + j/page]·page + j%page
    /// of the pools k and v.
    paged_attention::paged_attention_forward{N, Z, T, H, K, D, P}(out: write [N*Z, H*D], lse: write f32 [N*Z, H], q: read [N, H*D], k: read [T, K*D],
        v: read [T, K*D], span: read u32 [N*Z, 2], starts: read u32 [N], pages: read u32 [P]; PagedAttention);
    /// out and lse over all keys of a query from those over each of Z parts of them: the mean of the parts by exp(part_lse).
    paged_attention::paged_attention_join{N, Z, H, D}(out: write [N, H*D], lse: write f32 [N, H], parts: read f32 [N*Z, H*D], part_lse: read f32 [N*Z, H];
        PagedAttentionJoin);

    /// q[n,h,:] = the A last channels of inp[n,h,:], its U others, zeros: what turns comes first.
    latent::latent_query_forward{N, H, D, A, U}(q: write [N, H*D], inp: read [N, H*(U+A)]; Latent);
    /// dinp = ∂L/∂inp.
    latent::latent_query_backward{N, H, D, A, U}(dinp: write [N, H*(U+A)], dq: read [N, H*D]; Latent);
    /// k[n,h,:] = rope[n,:], the U first channels of kv[n,h,:], zeros; v[n,h,:] = the Y others, zeros.
    latent::latent_kv_forward{N, H, D, A, U, Y}(k: write [N, H*D], v: write [N, H*D], kv: read [N, H*(U+Y)], rope: read [N, A]; Latent);
    /// dkv, drope = ∂L/∂(kv, rope); drope is a sum over the heads.
    latent::latent_kv_backward{N, H, D, A, U, Y}(dkv: write [N, H*(U+Y)], drope: write [N, A], dk: read [N, H*D], dv: read [N, H*D]; Latent);
    /// out[n,h,:] = the Y first channels of att[n,h,:].
    latent::latent_output_forward{N, H, D, Y}(out: write [N, H*Y], att: read [N, H*D]; Latent);
    /// datt[n,h,:] = dout[n,h,:], zeros.
    latent::latent_output_backward{N, H, D, Y}(datt: write [N, H*D], dout: read [N, H*Y]; Latent);
    /// After attention_forward: lse = log(exp(lse) + exp(sinks)), out scaled to agree with it. attention_backward takes both as they are then.
    attention_sink::attention_sink_forward{N, H, D}(out: update [N, H*D], lse: update f32 [N, H], sinks: read [H]; AttentionSink);
    /// dsinks −= Σ_N exp(sinks − lse)·Σ_D dout·out.
    attention_sink::attention_sink_backward{N, H, D}(dsinks: add f32 [H], dout: read [N, H*D], out: read [N, H*D], lse: read f32 [N, H],
        sinks: read [H]; AttentionSink);

    /// out = act(inp): silu, gelu, relu or relu².
    activation::activation_forward{N, F}(out: write [N, F], inp: read [N, F]; Activation);
    /// In place: dout becomes out (recomputed), inp becomes dinp.
    activation::activation_backward{N, F}(dout: update [N, F], inp: update [N, F]; Activation);

    /// out = act(gate)·up.
    swiglu::swiglu_forward{N, F}(out: write [N, F], gate: read [N, F; ld_gate], up: read [N, F; ld_up]; SwiGlu);
    /// In place: dout becomes out (recomputed), gate becomes dgate, up becomes dup.
    swiglu::swiglu_backward{N, F}(dout: update [N, F], gate: update [N, F; ld_gate], up: update [N, F; ld_up]; SwiGlu);

    /// experts[n,:] = the S greatest of logits[n,:], weights[n,:] = their softmax probabilities (renormalised to sum 1 where `norm` is 1).
    router::router_forward{N, E, S}(weights: write f32 [N, S], experts: write u32 [N, S], logits: read [N, E]; Router);
    /// dlogits = ∂L/∂logits; the choice itself has no gradient.
    router::router_backward{N, E, S}(dlogits: write [N, E], dweights: read f32 [N, S], weights: read f32 [N, S], experts: read u32 [N, S],
        logits: read [N, E]; Router);

    /// The same by sigmoids: of the `kept` of `groups` groups whose two greatest σ(logits) + bias are most, the S greatest σ(logits) + bias;
    /// weights = scale·σ(logits) (divided by their sum where `norm` is 1).
    group_router::group_router_forward{N, E, S}(weights: write f32 [N, S], experts: write u32 [N, S], logits: read [N, E], bias: read f32 [E]; GroupRouter);
    /// dlogits = ∂L/∂logits; the choice itself has no gradient.
    group_router::group_router_backward{N, E, S}(dlogits: write [N, E], dweights: read f32 [N, S], weights: read f32 [N, S],
        experts: read u32 [N, S], logits: read [N, E]; GroupRouter);

    /// count[e] += Σ_N mask[n]·(slots of n given to e).
    expert_count::expert_count{N, E, S}(count: add f32 [E], experts: read u32 [N, S], mask: read f32 [N]; ExpertCount);
    /// prob[e] += Σ_N mask[n]·softmax(logits[n,:])[e]; lse[n] = log Σ_E exp(logits[n,:]).
    balance::balance_forward{N, E}(prob: add f32 [E], lse: write f32 [N], logits: read [N, E], mask: read f32 [N]; Balance);
    /// dlogits[n,:] += scale·mask[n]·∂(Σ_E dprob·p)/∂logits[n,:], p = softmax(logits[n,:]).
    balance::balance_backward{N, E}(dlogits: add [N, E], dprob: read f32 [E], logits: read [N, E], mask: read f32 [N]; BalanceBackward);

    /// The slots n·S + a sorted by expert, stable: slot rows[m] is at place m, slot i at places[i]; expert e has the places offsets[e] <= m < offsets[e+1].
    route::route_index{N, E, S}(rows: write u32 [N*S], places: write u32 [N*S], offsets: write u32 [E+1], experts: read u32 [N, S]; RouteIndex);
    /// out[places[n,a],:] = inp[n,:]: a row per slot, those of an expert together.
    route::route_gather_forward{N, S, C}(out: write [N*S, C], inp: read [N, C], places: read u32 [N, S]; RouteGather);
    /// dinp[n,:] += Σ_S dout[places[n,a],:], in the order of the slots. Also what brings the experts' outputs back to their tokens.
    route::route_gather_backward{N, S, C}(dinp: add [N, C], dout: read [N*S, C], places: read u32 [N, S]; RouteGather);

    /// out[m,:] = weights[rows[m]]·silu(gate[m,:])·up[m,:].
    routed_swiglu::routed_swiglu_forward{M, F}(out: write [M, F], gate: read [M, F], up: read [M, F], weights: read f32 [M], rows: read u32 [M]; RoutedSwiGlu);
    /// In place: dout becomes out (recomputed), gate becomes dgate, up becomes dup; dweights[rows[m]] = Σ_F dout[m,:]·silu(gate[m,:])·up[m,:].
    routed_swiglu::routed_swiglu_backward{M, F}(dout: update [M, F], gate: update [M, F], up: update [M, F], dweights: write f32 [M],
        weights: read f32 [M], rows: read u32 [M]; RoutedSwiGlu);

    /// out[m,:] = weights[rows[m]]·g·σ(alpha·g)·(u + 1), g and u the even and odd channels of gate_up, clamped.
    clamped_swiglu::clamped_swiglu_forward{M, F}(out: write [M, F], gate_up: read [M, 2*F], weights: read f32 [M], rows: read u32 [M]; ClampedSwiGlu);
    /// In place: dout becomes out (recomputed), gate_up its gradient; dweights[rows[m]] = Σ_F dout[m,:]·g·σ(alpha·g)·(u + 1).
    clamped_swiglu::clamped_swiglu_backward{M, F}(dout: update [M, F], gate_up: update [M, 2*F], dweights: write f32 [M], weights: read f32 [M],
        rows: read u32 [M]; ClampedSwiGlu);

    /// out[m,:] += w·bias[e,:] for the rows offsets[e] <= m < offsets[e+1]; w = weights[rows[m]], or 1 where not `weighted`.
    expert_bias::expert_bias_forward{M, E, O}(out: update [M, O], bias: read [E, O], offsets: read u32 [E+1], weights: read f32 [M], rows: read u32 [M]; ExpertBias);
    /// dbias[e,:] += Σ_m w·dout[m,:] over the expert's rows.
    expert_bias::expert_bias_backward{M, E, O}(dbias: add f32 [E, O], dout: read [M, O], offsets: read u32 [E+1], weights: read f32 [M], rows: read u32 [M]; ExpertBias);
    /// dweights[rows[m]] += Σ_O dout[m,:]·bias[e,:], where the bias is weighted.
    expert_bias::expert_bias_backward_weights{M, E, O}(dweights: add f32 [M], dout: read [M, O], bias: read [E, O], offsets: read u32 [E+1], rows: read u32 [M]; ExpertBias);

    /// out[m,:] = alpha·a[m,:]·b[e]ᵀ for the rows offsets[e] <= m < offsets[e+1]: a linear layer of each expert on its own rows.
    grouped::grouped_nt{M, E, J, Q}(out: write [M, J], a: read [M, Q], b: read [E, J, Q], offsets: read u32 [E+1]; Grouped);
    /// out[m,:] += alpha·a[m,:]·b[e]ᵀ.
    grouped::grouped_nt_add{M, E, J, Q}(out: add [M, J], a: read [M, Q], b: read [E, J, Q], offsets: read u32 [E+1]; Grouped);
    /// out[m,:] = alpha·a[m,:]·b[e]: its input gradient.
    grouped::grouped_nn{M, E, J, Q}(out: write [M, J], a: read [M, Q], b: read [E, Q, J], offsets: read u32 [E+1]; Grouped);
    /// out[m,:] += alpha·a[m,:]·b[e].
    grouped::grouped_nn_add{M, E, J, Q}(out: add [M, J], a: read [M, Q], b: read [E, Q, J], offsets: read u32 [E+1]; Grouped);
    /// out[e] += alpha·Σ_m a[m,:]ᵀ·b[m,:] over the expert's rows: its weight gradient.
    grouped::grouped_tn_add{M, E, J, Q}(out: add [E, J, Q], a: read [M, J], b: read [M, Q], offsets: read u32 [E+1]; Grouped);

    /// out = a + scale·b.
    residual::residual_forward{P}(out: write [P], a: read [P], b: read [P]; Residual);
    /// dinp += scale·dout: the gradient of b, or with a scale of 1 that of a.
    residual::residual_backward{P}(dinp: add [P], dout: read [P]; Residual);

    /// logp[n] = logits[n, labels[n]] − lse[n]; 0 where the label is ignored (2³² − 1). lse[n] = log Σ_V exp(logits[n,:]).
    logprob::logprob_forward{N, V}(logp: write f32 [N], lse: write f32 [N], logits: read [N, V; ld_logits], labels: read u32 [N]; LogProb);
    /// dlogits[n,:] = coef[n]·(1[label] − softmax(logits[n,:])), coef = ∂L/∂logp; 0 where the label is ignored.
    logprob::logprob_backward{N, V}(dlogits: write [N, V; ld_dlogits], coef: read f32 [N], lse: read f32 [N], logits: read [N, V; ld_logits],
        labels: read u32 [N]; LogProb);

    /// The next token of each row by its temperature, top_p, min_p (controls), random words and top_k (keys); logp is the token's under softmax(logits).
    sample::sample_token{N, V}(token: write u32 [N], logp: write f32 [N], logits: read f32 [N, V; ld_logits], controls: read f32 [N, 3],
        keys: read u32 [N, 3]; SampleToken);
    /// Places at[e,:] = (row, token): divided (where negative, multiplied) by change[e,0], plus change[e,1].
    sample::sample_adjust{N, V, P}(logits: update f32 [N, V; ld_logits], at: read u32 [P, 2], change: read f32 [P, 2]; SampleAdjust);
    /// logits = softcap(logits).
    sample::sample_softcap{N, V}(logits: update f32 [N, V; ld_logits]; SampleSoftcap);

    /// NF4: blocks of 64 values; codes hold two values a byte, the first in the high half.
    nf4::nf4_quantize{P}(codes: write u8 [ceil(P, 2)], absmax: write f32 [ceil(P, 64)], inp: read [P]; Nf4);
    /// out[i] = level[code i]·absmax[i/64].
    nf4::nf4_dequantize{P}(out: write [P], codes: read u8 [ceil(P, 2)], absmax: read f32 [ceil(P, 64)]; Nf4);
    /// The same with double quantization: absmax[b] = map[qabsmax[b]]·nested[b/256] + offset.
    nf4::nf4_dequantize_double{P}(out: write [P], codes: read u8 [ceil(P, 2)], qabsmax: read u8 [ceil(P, 64)],
        nested: read f32 [ceil(ceil(P, 64), 256)], map: read f32 [256]; Nf4Double);

    /// One scale a row: scb[o] = max |inp[o,:]|, codes[o,c] = round(inp[o,c]·127/scb[o]) in two's complement.
    int8::int8_quantize{O, C}(codes: write u8 [O, C], scb: write f32 [O], inp: read [O, C]; Int8);
    /// out[o,c] = codes[o,c]·scb[o]/127.
    int8::int8_dequantize{O, C}(out: write [O, C], codes: read u8 [O, C], scb: read f32 [O]; Int8);

    /// Rows in e4m3: scales[n] = max |inp[n,:]·by|/448, codes[n,c] = inp[n,c]·by[c]/scales[n] rounded.
    fp8::fp8_quantize{N, C}(codes: write u8 [N, C], scales: write f32 [N], inp: read [N, C], by: opt read f32 [C]; Fp8Quantize);
    /// out[n,c] = codes[n,c]·scales[n].
    fp8::fp8_dequantize{N, C}(out: write [N, C], codes: read u8 [N, C], scales: read f32 [N]; Fp8);
    /// out[c,n] = inp[n,c], in bytes.
    fp8::fp8_transpose{N, C}(out: write u8 [C, N], inp: read u8 [N, C]; Fp8);
    /// out = (a·a_scales)·(b·b_scales)ᵀ of rows in e4m3, a scale a row.
    fp8_matmul::fp8_matmul{I, J, Q}(out: write [I, J], a: read u8 [I, Q], a_scales: read f32 [I], b: read u8 [J, Q], b_scales: read f32 [J]; Fp8MatMul);
    /// out += the same.
    fp8_matmul::fp8_matmul_add{I, J, Q}(out: add [I, J], a: read u8 [I, Q], a_scales: read f32 [I], b: read u8 [J, Q], b_scales: read f32 [J]; Fp8MatMul);

    /// out[n,o] = Σ_c inp[n,c]·W[first + o,c] of a weight of P values that stays packed as nf4_dequantize reads it.
    thin::thin_nf4{N, O, C, P}(out: write [N, O], inp: read [N, C], codes: read u8 [ceil(P, 2)], absmax: read f32 [ceil(P, 64)]; Thin);
    /// The same as nf4_dequantize_double reads it.
    thin::thin_nf4_double{N, O, C, P}(out: write [N, O], inp: read [N, C], codes: read u8 [ceil(P, 2)], qabsmax: read u8 [ceil(P, 64)],
        nested: read f32 [ceil(P, 16384)], map: read f32 [256]; ThinDouble);
    /// The same as int8_dequantize reads it.
    thin::thin_int8{N, O, C, P}(out: write [N, O], inp: read [N, C], codes: read u8 [P], scb: read f32 [ceil(P, C)]; Thin);

    /// out[i] = level[code i]·2^(scales[i/32] − 127): 4-bit floats in blocks of 32, the first of a byte in the low half.
    mxfp4::mxfp4_dequantize{P}(out: write [P], codes: read u8 [ceil(P, 2)], scales: read u8 [ceil(P, 32)]; Mxfp4);

    /// Block-wise 8-bit quantization (blocks of 256) to the nearest of the map's 256 rising levels in units of the block's absmax.
    dyn8::dyn8_quantize{P}(codes: write u8 [P], absmax: write f32 [ceil(P, 256)], inp: read [P], map: read f32 [256]; Dyn8);
    /// out[i] = map[codes[i]]·absmax[i/256].
    dyn8::dyn8_dequantize{P}(out: write [P], codes: read u8 [P], absmax: read f32 [ceil(P, 256)], map: read f32 [256]; Dyn8);

    /// ggml's block formats (see `ops/gguf.rs` for the layouts), whole blocks: out[i] = value i of the blocks.
    gguf::q4_0_dequantize{P}(out: write [P], blocks: read u8 [P/32*18]; Blocks32);
    /// The same with a minimum a block.
    gguf::q4_1_dequantize{P}(out: write [P], blocks: read u8 [P/32*20]; Blocks32);
    /// 5 bits a value.
    gguf::q5_0_dequantize{P}(out: write [P], blocks: read u8 [P/32*22]; Blocks32);
    /// 5 bits a value, with a minimum a block.
    gguf::q5_1_dequantize{P}(out: write [P], blocks: read u8 [P/32*24]; Blocks32);
    /// 8 bits a value.
    gguf::q8_0_dequantize{P}(out: write [P], blocks: read u8 [P/32*34]; Blocks32);
    /// Blocks of 256 in 8 parts, each with a 6-bit scale and minimum; 4.5 bits a value in all.
    gguf::q4_k_dequantize{P}(out: write [P], blocks: read u8 [P/256*144]; Blocks256);
    /// The same with 5.5 bits.
    gguf::q5_k_dequantize{P}(out: write [P], blocks: read u8 [P/256*176]; Blocks256);
    /// Blocks of 256 in 16 parts, each with an 8-bit scale; 6.5625 bits a value in all.
    gguf::q6_k_dequantize{P}(out: write [P], blocks: read u8 [P/256*210]; Blocks256);

    /// out[n,o] = Σ_c inp[n,c]·W[first + o,c] of a weight of P bytes that stays packed, in any of these formats.
    gguf::thin_gguf{N, O, C, P}(out: write [N, O], inp: read [N, C], blocks: read u8 [P]; ThinGguf);

    /// One step of AdamW on one tensor: weight and both moments move. grad is multiplied by scale[0] first (clipping).
    /// Where `chance` is 1, the weights of this and of every other step are rounded to bf16 by chance (`ops/adamw.rs`).
    adamw::adamw_step{P}(weight: update [P], m: update f32 [P], v: update f32 [P], grad: read [P], scale: read f32 [1]; AdamW);
    /// The same with both moments in 8 bits, in blocks of 256: codes into map1 (signed) and map2 (unsigned) in units of absmax1, absmax2.
    adamw::adamw_step_8bit{P}(weight: update [P], m: update u8 [P], v: update u8 [P], absmax1: update f32 [ceil(P, 256)],
        absmax2: update f32 [ceil(P, 256)], grad: read [P], scale: read f32 [1], map1: read f32 [256], map2: read f32 [256]; AdamW);

    /// One step of gradient descent on one tensor: weight −= lr·(grad·scale[0] + decay·weight).
    sgd::sgd_step{P}(weight: update [P], grad: read [P], scale: read f32 [1]; Sgd);
    /// The same along a momentum m of those gradients.
    sgd::sgd_step_momentum{P}(weight: update [P], m: update f32 [P], grad: read [P], scale: read f32 [1]; Sgd);
    /// One step of Lion on one tensor: weight moves by lr against the sign of a mean of m and grad·scale[0], then m moves.
    lion::lion_step{P}(weight: update [P], m: update f32 [P], grad: read [P], scale: read f32 [1]; Lion);
    /// The same with m in 8 bits, in blocks of 256: codes into the signed map in units of absmax.
    lion::lion_step_8bit{P}(weight: update [P], m: update u8 [P], absmax: update f32 [ceil(P, 256)], grad: read [P], scale: read f32 [1],
        map: read f32 [256]; Lion);
    /// m += (1 − momentum)·(grad·scale[0] − m); out = m, or what lies `momentum` of the way from the gradient to m; square[n] = Σ out[n,:]².
    muon::muon_momentum{N, C}(m: update f32 [N, C], out: write [N, C], square: write f32 [N], grad: read [N, C], scale: read f32 [1]; MuonMomentum);
    /// E matrices, each divided by its Frobenius norm: x[e,n,:] /= max(√Σ_n square[e,n], eps).
    muon::muon_normalize{E, N, C}(x: update [E*N, C], square: read f32 [E, N]; MuonNormalize);
    /// weight = keep·weight − lr·update.
    muon::muon_step{P}(weight: update [P], update: read [P]; MuonStep);

    /// partial[b] = Σ inp² over block b of 4096 values; a tensor's share of the gradient norm.
    gradnorm::gradnorm_partial{P}(partial: write f32 [ceil(P, 4096)], inp: read [P]; GradNorm);
    /// norm[0] = unscale·√Σ partial; scale[0] = unscale·min(1, max_norm/(norm + 1e-6)), or unscale when max_norm is 0.
    gradnorm::gradnorm_finish{P}(norm: write f32 [1], scale: write f32 [1], partial: read f32 [P]; GradNormFinish);

    /// out = inp in out's own storage type.
    cast::cast_forward{P}(out: write [P], inp: read [P]; Cast);
    /// out = value everywhere.
    fill::fill_forward{P}(out: write [P]; Fill);
}}}
pub(crate) use for_each_op;
