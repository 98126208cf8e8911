"""Pieces of the training script, as text: each says what it does, and stands on its own.

Names in capitals are constants at the top of the script. `script.py` chooses the pieces.
"""

from __future__ import annotations

READ_LINES = """
def read(path):
    with path.open(encoding="utf-8-sig") as file:
        return [json.loads(line) for line in file if line.strip()]
"""

READ_CSV = """
def read(path):
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter="{delimiter}"))
"""

SPLIT_ROWS = """
rows = read(Path({data}))
mixed = np.random.default_rng(0).permutation(len(rows))  # the same split always
few = max(1, round({share} * len(rows)))
held_out, rows = [rows[i] for i in mixed[:few]], [rows[i] for i in {kept}]
"""

TWO_FILES = """
rows, held_out = read(HERE / "train.jsonl"), read(HERE / "validation.jsonl")
"""

CLASS_TENSORS = '''
def tensors(rows, length):
    """Return texts as tokens, cut or padded to one length, with their classes."""
    texts = [row["{text}"] for row in rows]
    tokens = torch.full((len(rows), length), {pad})
    mask = torch.zeros_like(tokens)
    for place, ids in enumerate(tokenizer(texts, truncation=True, max_length=length)["input_ids"]):
        tokens[place, : len(ids)], mask[place, : len(ids)] = torch.tensor(ids), 1
    labels = torch.tensor([CLASSES.index(str(row["{label}"])) for row in rows])
    found = {{"input_ids": tokens, "labels": labels}}
    return found if mask.all() else {{**found, "attention_mask": mask}}
'''

TOKENS = '''
def tensors(rows, length):
    """Cut the stream of all texts into inputs and the tokens that follow each of them."""
    encoded = tokenizer([row["{text}"] for row in rows], add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in {whole}])
    count = (len(stream) - 1) // length
    inputs, labels = stream[: count * length], stream[1 : count * length + 1]
    return {{"input_ids": inputs.view(count, length), "labels": labels.view(count, length)}}
'''

BYTES = '''
def tensors(rows, length):
    """Cut the bytes of all texts into inputs and the bytes that follow each of them."""
    stream = torch.tensor(list("\\n\\n".join(row["{text}"] for row in rows).encode()))
    count = (len(stream) - 1) // length
    inputs, labels = stream[: count * length], stream[1 : count * length + 1]
    return {{"input_ids": inputs.view(count, length), "labels": labels.view(count, length)}}
'''

ORDER = '''
def orders(count, batch, seed):
    """Yield the places of each batch; a pass over the data has an order of its own."""
    chance = np.random.default_rng(seed)
    queue = chance.permutation(count)
    while True:
        while len(queue) < batch:
            queue = np.concatenate([queue, chance.permutation(count)])
        yield queue[:batch]
        queue = queue[batch:]
'''

MEASURED_ON_CPU = '''
owners, peak = [], 0


def peak_bytes():
    return peak


def measured(run, *arguments):
    """Run a part, and note the most bytes of tensors: those held, and what came on top of them."""
    global peak
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in live()}
    held = sum(storage.nbytes() for storage in storages.values())
    del storages
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = run(*arguments)
    todo, totals = list(seen.profiler.kineto_results.experimental_event_tree()), []
    while todo:
        event = todo.pop()
        todo += event.children
        if hasattr(event.extra_fields, "total_allocated"):
            change = event.extra_fields.alloc_size
            totals.append((event.start_time_ns, event.extra_fields.total_allocated, change))
    before = min(totals)[1] - min(totals)[2] if totals else 0
    peak = max([peak, *(held + total - before for _, total, _ in totals)])
    seen.profiler = None
    return result


def live():
    """Yield the tensors that live between steps."""
    for owner in owners:
        if isinstance(owner, torch.optim.Optimizer):
            yield from (t for s in owner.state.values() for t in s.values() if torch.is_tensor(t))
        else:
            yield from (*owner.parameters(), *owner.buffers())
            yield from (p.grad for p in owner.parameters() if p.grad is not None)


def own_memory(model):
    """Give the model memory of its own: what was read from a file takes some only when touched."""
    for tensor in model.buffers():
        tensor.data = tensor.data.clone()
    read = [p.data for p in model.parameters()]
    for p, data in zip(model.parameters(), read):
        p.data = data.clone()
'''

MEASURED_ON_CUDA = '''
owners = []


def peak_bytes():
    """Return the most bytes that the caching allocator has reserved."""
    return torch.cuda.max_memory_reserved()


def measured(run, *arguments):
    return run(*arguments)
'''

CLASS_LOSS = """
def loss_of(batch):
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    return cross_entropy(model(**inputs).logits.float(), batch["labels"])
"""

TOKEN_LOSS = """
def loss_of(batch):
    logits = model(input_ids=batch["input_ids"]).logits.float()
    return cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
"""

CHUNKED_LOSS = """
def loss_of(batch):
    hidden, head = inner(batch["input_ids"]).flatten(0, 1), model.get_output_embeddings()
    return chunked_cross_entropy(hidden, batch["labels"].flatten(), head, LOSS_CHUNKS)
"""

INNER = """
def inner(tokens):
    return model.base_model(input_ids=tokens).last_hidden_state
"""

CLASS_EVALUATE = '''
@torch.no_grad()
def evaluate(data, count):
    """Return the accuracy over the first `count` texts."""
    model.eval()
    right = 0
    for start in range(0, count, EVAL_BATCH):
        batch = {n: t[start : start + EVAL_BATCH].to(DEVICE) for n, t in data.items()}
        labels = batch.pop("labels")
        right += (model(**batch).logits.argmax(-1) == labels).sum().item()
    return right / count
'''

TOKEN_EVALUATE = '''
@torch.no_grad()
def evaluate(data, count):
    """Return the perplexity over the first `count` sequences."""
    model.eval()
    total = 0.0
    for start in range(0, count, EVAL_BATCH):
        part = slice(start, min(count, start + EVAL_BATCH))
        hidden = inner(data["input_ids"][part].to(DEVICE)).flatten(0, 1)
        labels = data["labels"][part].to(DEVICE).flatten()
        for states, right in zip(hidden.split(FEW), labels.split(FEW)):
            logits = model.get_output_embeddings()(states).float()
            total += cross_entropy(logits, right, reduction="sum").item()
    return math.exp(total / data["labels"][:count].numel())
'''

STEP = '''
def step(batch):
    """Do one optimizer step over a batch, in micro-batches, and return its mean loss."""
    total = 0.0
    pieces = {{name: tensor{pinned}.chunk(MICRO_BATCHES) for name, tensor in batch.items()}}
    for place in range(MICRO_BATCHES):
        micro = {{name: parts[place]{move} for name, parts in pieces.items()}}
        loss = loss_of(micro) / MICRO_BATCHES
        {backward}
        total += loss.item()
        del loss
{update}    return total
'''

UPDATE = """\
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad({keep})
"""

UPDATE_SCALED = """\
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad({keep})
"""

TRAIN = """
data = tensors(rows, LENGTH)
order, warmup = orders(len(data["labels"]), BATCH, SEED), max(1, round(0.1 * STEPS))
for number in range(STEPS):
    rising, falling = (number + 1) / warmup, (STEPS - number) / max(1, STEPS - warmup)
    for group in groups:
        group["lr"] = RATE * (rising if number < warmup else falling)
    places = next(order)
    batch = {{name: tensor[places] for name, tensor in data.items()}}
    loss = measured(step, batch) if number < 3 else step(batch)
    print(f"step {{number + 1}}/{{STEPS}}  loss {{loss:.4f}}", flush=True)
for p in trained:
    p.grad = None
owners[1:], optimizer = [], None  # the evaluation has their memory
data = tensors(held_out, EVAL_LENGTH)
measured(evaluate, data, min(EVAL_BATCH, EVAL_EXAMPLES))
print(json.dumps({{"{metric}": evaluate(data, EVAL_EXAMPLES), "peak_bytes": peak_bytes()}}))
"""

SAVE = """
if len(sys.argv) > 1:
{merge}    model.save_pretrained(sys.argv[1])
{tokenizer}"""
