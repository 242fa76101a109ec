//! Many sequences on one model, a step at a time.
use super::adapters::Adapters;
use super::options::Options;
use super::pages::Pages;
use super::plan::{Queue, Share};
use super::sequence::{AdapterId, Event, Finish, Request, RequestId, Sequence, Token};
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::adapters::{AdapterShape, Detached};
use crate::model::paged::{Part, Pool, Tables};
use crate::model::sampler::{Draw, Drawn, Sampler, Want};
use crate::model::{Common, Model, Plan, Session};
use std::collections::HashMap;

/// The model of an engine: its own, or lent to it.
enum Held<'m> {
    Own(Box<Model>),
    Lent(&'m Model),
}

impl Held<'_> {
    fn get(&self) -> &Model {
        match self {
            Held::Own(model) => model,
            Held::Lent(model) => model,
        }
    }
}

pub struct Engine<'b> {
    b: &'b dyn Backend,
    model: Held<'b>,
    max_length: usize,
    queue: Queue,
    pool: Option<Pool>,
    tables: Tables,
    common: Common<'b>,
    /// By numbers of tokens, and what the adapter wants.
    sessions: HashMap<(usize, AdapterShape), Session<'b>>,
    adapters: Adapters,
    sampler: Sampler<'b>,
    next_id: RequestId,
    stats: Stats,
}

/// What an engine has done, and what it has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub running: usize,
    pub waiting: usize,
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    /// Tokens of prompts that were found in the cache.
    pub cached_tokens: u64,
    pub preempted: u64,
    pub pages: usize,
    pub pages_used: usize,
    /// Pages that nobody uses, kept for what is in them.
    pub pages_kept: usize,
}

/// Sessions are made for these numbers of tokens: powers of two, with one between from 16 on.
fn session_size(tokens: usize) -> usize {
    let above = tokens.next_power_of_two();
    if above >= 32 && tokens <= above / 4 * 3 { above / 4 * 3 } else { above }
}

impl<'b> Engine<'b> {
    /// For a model of its own.
    pub fn new(b: &'b dyn Backend, model: Model, options: &Options) -> Result<Engine<'b>> {
        Engine::with(b, Held::Own(Box::new(model)), options)
    }
    pub fn lend(b: &'b dyn Backend, model: &'b Model, options: &Options) -> Result<Engine<'b>> {
        Engine::with(b, Held::Lent(model), options)
    }

    fn with(b: &'b dyn Backend, held: Held<'b>, options: &Options) -> Result<Engine<'b>> {
        let model = held.get();
        let (max_length, pages) = options.sizes(b, model)?;
        let common = Common::new(b, model, session_size(options.max_step_tokens), max_length)?;
        let sampler = Sampler::new(b, model, options.max_sequences)?;
        let pool = Pool::new(b, &model.spec, model.dtype, pages)?;
        let queue = Queue {
            pages: Pages::new(pages),
            waiting: Default::default(),
            running: Vec::new(),
            max_sequences: options.max_sequences,
            max_step_tokens: options.max_step_tokens,
            prefixes: options.prefixes,
            preempted: 0,
        };
        Ok(Engine {
            b,
            tables: Tables::new(model.dtype),
            max_length,
            queue,
            pool: Some(pool),
            common,
            sessions: HashMap::new(),
            adapters: Adapters::default(),
            sampler,
            next_id: 1,
            stats: Stats::default(),
            model: held,
        })
    }

    pub fn model(&self) -> &Model {
        self.model.get()
    }
    /// Tokens of a sequence, prompt and answer.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Takes an adapter in that was made for this engine's own model; requests name it by the number.
    pub fn add_adapter(
        &mut self,
        load: impl FnOnce(&dyn Backend, &mut Model) -> Result<Detached>,
    ) -> Result<AdapterId> {
        let Held::Own(model) = &mut self.model else {
            return Err(Error::Bug("an engine with a model that it was lent takes no adapters".into()));
        };
        self.adapters.put_on(model, 0);
        let adapter = load(self.b, model)?;
        Ok(self.adapters.add(adapter))
    }

    /// No new request may name the adapter; those that have it end with it.
    pub fn remove_adapter(&mut self, id: AdapterId) {
        self.adapters.remove(id);
        self.sweep();
    }

    fn sweep(&mut self) {
        let Queue { running, waiting, .. } = &self.queue;
        let wanted = |id| running.iter().chain(waiting).any(|sequence| sequence.adapter == id);
        if let Held::Own(model) = &mut self.model
            && self.adapters.sweep(self.b, model, wanted)
        {
            // their sizes may have been those of what left; made again where they were not
            self.sessions.clear();
        }
    }

    /// Queues a request; its events come out of the steps.
    pub fn add(&mut self, request: Request) -> Result<RequestId> {
        let V = self.model().spec.V;
        request.sampling.check(V)?;
        if request.prompt.is_empty() {
            return Err(Error::Usage("the prompt has no tokens".into()));
        }
        if let Some(id) = request.prompt.iter().find(|id| **id as usize >= V) {
            return Err(Error::Usage(format!("token {id} is beyond the model's vocabulary of {V}")));
        }
        if request.prompt.len() >= self.max_length {
            let (got, most) = (request.prompt.len(), self.max_length);
            return Err(Error::Usage(format!("the prompt has {got} tokens; with an answer, {most} fit: shorten it")));
        }
        if !self.adapters.has(request.adapter) {
            return Err(Error::Usage("the request names an adapter that is not there".into()));
        }
        let id = self.next_id;
        self.next_id += 1;
        let limit = self.max_length.min(request.prompt.len().saturating_add(request.sampling.max_new_tokens));
        if request.n == 0 || limit == request.prompt.len() {
            return Err(Error::Usage("an answer of no tokens was asked for".into()));
        }
        let sequence = |index| Sequence::new(&request, id, index, limit);
        let mut first = sequence(0);
        first.siblings = (1..request.n).map(sequence).collect();
        self.queue.waiting.push_back(first);
        Ok(id)
    }

    /// Ends a request, or one of its answers; no event tells of it.
    pub fn cancel(&mut self, request: RequestId, index: Option<usize>) {
        let hit = |s: &Sequence| s.request == request && index.is_none_or(|index| s.index == index);
        let Queue { pages, waiting, running, .. } = &mut self.queue;
        let mut orphans = Vec::new();
        let mut stays = |sequence: &mut Sequence| {
            sequence.siblings.retain(|s| !hit(s));
            if !hit(sequence) {
                return true;
            }
            pages.leave(&mut sequence.pages);
            orphans.append(&mut sequence.siblings);
            false
        };
        waiting.retain_mut(&mut stays);
        running.retain_mut(&mut stays);
        orphans.into_iter().rev().for_each(|sequence| waiting.push_front(sequence));
    }

    /// Whether a step has anything to do.
    pub fn is_busy(&self) -> bool {
        !self.queue.running.is_empty() || !self.queue.waiting.is_empty()
    }

    pub fn stats(&self) -> Stats {
        let pages = &self.queue.pages;
        Stats {
            running: self.queue.running.len(),
            waiting: self.queue.waiting.iter().map(|sequence| 1 + sequence.siblings.len()).sum(),
            preempted: self.queue.preempted,
            pages: self.pool.as_ref().map_or(0, Pool::pages) - 1,
            pages_used: pages.used(),
            pages_kept: pages.kept(),
            ..self.stats
        }
    }

    /// Forgets what is kept for requests to come.
    pub fn clear_prefixes(&mut self) {
        self.queue.pages.clear();
    }

    /// The next piece of work: a token for every sequence that goes on, and pieces of prompts.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        let shares = self.queue.plan(&self.model.get().spec);
        let mut adapters: Vec<AdapterId> = shares.iter().map(|share| self.queue.running[share.at].adapter).collect();
        adapters.sort_unstable();
        adapters.dedup();
        let mut events = Vec::new();
        let mut ended = Vec::new();
        for adapter in adapters {
            let own = |share: &&Share| self.queue.running[share.at].adapter == adapter;
            let mut group: Vec<Share> = shares.iter().filter(own).copied().collect();
            // a prompt's piece of few tokens goes with the answers
            group.sort_by_key(|share| !part(&self.queue.running, share).is_few());
            if let Held::Own(model) = &mut self.model {
                self.adapters.put_on(model, adapter);
            }
            let drawn = self.run(&group)?;
            self.settle(&group, drawn, &mut events, &mut ended);
        }
        ended.sort_unstable();
        for at in ended.into_iter().rev() {
            let mut sequence = self.queue.running.remove(at);
            self.queue.pages.leave(&mut sequence.pages);
        }
        self.sweep();
        Ok(events)
    }

    /// Computes the shares' tokens, and draws the next of each sequence that has no more of its own.
    fn run(&mut self, shares: &[Share]) -> Result<Vec<Option<Drawn>>> {
        let total: usize = shares.iter().map(|share| share.tokens).sum();
        let size = session_size(total);
        let key = (size, self.model.get().adapter_shape());
        if !self.sessions.contains_key(&key) {
            let session = Session::with(&self.common, self.model.get(), size, 1, Plan::Inference)?;
            self.sessions.insert(key, session);
        }
        let parts: Vec<Part> = shares.iter().map(|share| part(&self.queue.running, share)).collect();
        let session = self.sessions.get_mut(&key).expect("made above");
        let pool = self.pool.as_ref().expect("there until the end");
        let model = self.model.get();
        session.forward_paged(model, self.adapters.on(), &parts, pool, &mut self.tables)?;
        let (mut draws, mut row) = (Vec::new(), 0);
        let mut slots = Vec::new();
        for share in shares {
            row += share.tokens;
            let sequence = &self.queue.running[share.at];
            let last = share.tokens == sequence.missing();
            slots.push(last.then_some(draws.len()));
            if last {
                draws.push(draw(sequence, row as u32 - 1));
            }
        }
        let mut drawn: Vec<Option<Drawn>> = Vec::new();
        if !draws.is_empty() {
            drawn = self.sampler.sample(model, session, &draws)?.into_iter().map(Some).collect();
        }
        Ok(slots.into_iter().map(|slot| slot.and_then(|slot| drawn[slot].take())).collect())
    }

    /// What has come of the shares: tokens, ends, pages that others may share.
    fn settle(&mut self, shares: &[Share], drawn: Vec<Option<Drawn>>, events: &mut Vec<Event>, ended: &mut Vec<usize>) {
        let spec = &self.model.get().spec;
        for (share, drawn) in shares.iter().zip(drawn) {
            let sequence = &mut self.queue.running[share.at];
            let before = sequence.computed;
            sequence.computed += share.tokens;
            if before < sequence.prompt {
                self.stats.prompt_tokens += (sequence.computed.min(sequence.prompt) - before) as u64;
            }
            self.stats.cached_tokens += std::mem::take(&mut sequence.found) as u64;
            self.queue.learn(spec, share.at, before);
            let Some(drawn) = drawn else { continue };
            let sequence = &mut self.queue.running[share.at];
            let siblings = std::mem::take(&mut sequence.siblings);
            let (request, index) = (sequence.request, sequence.index);
            let (token, finish) = if sequence.stop.contains(&drawn.token) {
                (None, Some(Finish::Stop))
            } else {
                let token = token(sequence, drawn);
                sequence.push(token.id);
                self.stats.generated_tokens += 1;
                (Some(token), (sequence.tokens.len() >= sequence.limit).then_some(Finish::Length))
            };
            if finish.is_some() {
                ended.push(share.at);
            } else if spec.rope_turns_at(sequence.tokens.len()) {
                // from here on other angles hold, for the keys in the cache too
                let Queue { pages, running, .. } = &mut self.queue;
                running[share.at].restart(pages);
            }
            siblings.into_iter().rev().for_each(|sibling| self.queue.waiting.push_front(sibling));
            events.push(Event { request, index, token, finish });
        }
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if let Held::Own(model) = &mut self.model {
            self.adapters.free(self.b, model);
        }
        self.pool.take().into_iter().for_each(|pool| pool.free(self.b));
        self.tables.free(self.b);
    }
}

fn part<'s>(running: &'s [Sequence], share: &Share) -> Part<'s> {
    let sequence = &running[share.at];
    let ids = &sequence.tokens[sequence.computed..sequence.computed + share.tokens];
    Part { ids, past: sequence.computed, length: sequence.tokens.len(), pages: &sequence.pages }
}

/// How a sequence's next token is drawn from its last one's row.
/// Temperatures below it mean the likeliest token.
const COLD: f32 = 1e-5;

fn draw(sequence: &Sequence, row: u32) -> Draw {
    let (s, adjust) = (&sequence.sampling, sequence.adjust());
    Draw {
        row,
        // so cold that logits over it leave f32
        temperature: if s.temperature < COLD { 0.0 } else { s.temperature },
        // the likeliest token stays, however little is wanted
        top_p: s.top_p.max(f32::EPSILON * f32::EPSILON),
        min_p: s.min_p,
        top_k: s.top_k.min(u32::MAX as usize) as u32,
        words: sequence.words(),
        // the model's own probabilities are wanted, which changed logits do not tell
        want: if s.logprobs.is_some_and(|k| k > 0 || !adjust.is_empty()) { Want::Logits } else { Want::Token },
        adjust,
    }
}

fn token(sequence: &Sequence, drawn: Drawn) -> Token {
    let (Some(k), Some(logits)) = (sequence.sampling.logprobs, drawn.logits) else {
        return Token { id: drawn.token, logprob: drawn.logp, top: Vec::new() };
    };
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let lse = logits.iter().map(|z| ((z - max) as f64).exp()).sum::<f64>().ln() as f32 + max;
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let likelier = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let k = k.min(order.len());
    if k < order.len() {
        order.select_nth_unstable_by(k, likelier);
    }
    order.truncate(k);
    order.sort_by(likelier);
    let top = order.into_iter().map(|id| (id, logits[id as usize] - lse)).collect();
    Token { id: drawn.token, logprob: logits[drawn.token as usize] - lse, top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_waste_little() {
        let sizes: Vec<usize> = [1, 2, 3, 9, 17, 24, 25, 33, 49, 100, 500, 512].map(session_size).to_vec();
        assert_eq!(sizes, [1, 2, 4, 16, 24, 24, 32, 48, 64, 128, 512, 512]);
    }
}
