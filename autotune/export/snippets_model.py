"""Pieces of the training script that change a model: pruning, adapters, freezing, wide products."""

from __future__ import annotations

KEEP_PART = '''
def keep(layer, dim, places):
    """Leave some of the outputs (dim 0) or inputs (dim 1) of a linear layer."""
    layer.weight = nn.Parameter(layer.weight.detach().index_select(dim, places))
    if dim == 0 and layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.detach().index_select(0, places))
    layer.out_features, layer.in_features = layer.weight.shape
'''

TOGETHER = '''
def together(model, *paths):
    """Yield every module that has layers at all of these paths, its name, and the layers."""
    for name, module in list(model.named_modules()):
        if {inner for inner, _ in module.named_modules()}.issuperset(paths):
            yield name, module, [module.get_submodule(path) for path in paths]
'''

PRUNE_FFN = '''
@torch.no_grad()
def prune_ffn(model, width):
    """Cut the inner units with the smallest weights out of every feed-forward layer."""
    for _, _, (*into, out) in together(model, *FFN):
        sizes = out.weight.t().float().norm(dim=1) * sum(m.weight.float().norm(dim=1) for m in into)
        stay = sizes.argsort(stable=True)[-width:].sort().values
        for layer in into:
            keep(layer, 0, stay)
        keep(out, 1, stay)
    model.config.{setting} = width
'''

PRUNE_HEADS = '''
@torch.no_grad()
def prune_heads(model, groups, size, queries):
    """Cut the heads with the smallest weights out, groups that share keys and values as a whole."""
    for _, module, (query, key, value, out) in together(model, *HEADS):
        count, sizes = key.out_features // size, 1.0
        for layer in (query, key, value):
            sizes = sizes * layer.weight.view(count, -1).float().norm(dim=1)
        stay = sizes.argsort(stable=True)[-groups:].sort().values[:, None]
        wide = (stay * size * queries + torch.arange(size * queries)).flatten()
        narrow = (stay * size + torch.arange(size)).flatten()
        for layer, places in ((query, wide), (key, narrow), (value, narrow)):
            keep(layer, 0, places)
        keep(out, 1, wide)
{counts}'''

DROP_BLOCKS = '''
def drop_blocks(model, stay):
    """Leave these blocks of the model, counted anew."""
    stacks = [(module, name, stack) for module in model.modules()
              for name, stack in module.named_children() if isinstance(stack, nn.ModuleList)]
    for module, name, stack in stacks:
        if isinstance(stack[0], GradientCheckpointingLayer):
            setattr(module, name, nn.ModuleList(stack[number] for number in stay))
    for number, block in enumerate(blocks(model)):
        for inner in block.modules():
            if hasattr(inner, "layer_idx"):
                inner.layer_idx = number
    model.config.{setting} = len(stay)
'''

BLOCKS = """
def blocks(model):
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
"""

ADAPTERS = '''
def add_adapters(model):
    """Freeze the model, and put an adapter on every linear layer of its blocks."""
    inside = {{id(layer) for block in blocks(model) for layer in block.modules()}}
    layers = [name for name, layer in model.named_modules()
              if id(layer) in inside and isinstance(layer, {kinds})]
    config = LoraConfig(r={rank}, lora_alpha={alpha}, lora_dropout=0.0, target_modules=layers{more})
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(model.dtype)
{head}'''

NEW_HEAD = """\
    pretrained = {id(parameter) for parameter in model.base_model.parameters()}
    for name, parameter in model.named_parameters():  # what is new trains as it is
        if id(parameter) not in pretrained or ".pooler." in name:
            parameter.requires_grad_(True)
"""

TARGETS = """\
    paths = {paths}
    kept = {{f"{{owner}}.{{path}}" for owner, _, _ in together(model, *paths) for path in paths}}
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer) and name not in kept:
            model.set_submodule(name, layer.get_base_layer())
"""

FREEZE_EMBEDDINGS = '''
def freeze_embeddings(model):
    """Let word embeddings, and what else stands below the first block, stay as they are."""
    inside = {id(p) for block in blocks(model) for p in block.parameters()}
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    outputs = {id(p) for p in outputs.parameters()} if outputs is not None else set()
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    others = {"project_in", "wpe", "wte"}
    for name, p in model.named_parameters():
        named = any("embed" in part or part in others for part in name.split("."))
        if id(p) not in inside and (id(p) in tables or (named and id(p) not in outputs)):
            p.requires_grad_(False)
'''

WIDEN = '''
class Widened(torch.autograd.Function):
    """A product of 16-bit tensors in fp32: this processor has no instructions for it."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        bias = None if bias is None else bias.float()
        return linear(x.float(), weight.float(), bias).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x, weight), wide = ctx.saved_tensors, grad.float()
        rows, needed = wide.flatten(0, -2), ctx.needs_input_grad
        return (
            (wide @ weight.float()).to(grad.dtype) if needed[0] else None,
            (rows.t() @ x.flatten(0, -2).float()).to(weight.dtype) if needed[1] else None,
            rows.sum(0).to(grad.dtype) if needed[2] else None,
        )


def widen(model):
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.forward = lambda x, m=layer: Widened.apply(x, m.weight, m.bias)
'''

MERGE = '''
def merge_adapters(model):
    """Add every adapter to its layer, which takes its place again."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
'''

RECOMPUTE = '''
def recompute(some):
    """Compute blocks again in the backward pass; they keep their input only."""
    for block in some:
        block.gradient_checkpointing = True
        block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
'''

RECOMPUTE_SELECTED = '''
def recompute(some):
    """Compute blocks again in the backward pass, but for their products and their attention."""
    products = [
{products}    ]
    chosen = partial(create_selective_checkpoint_contexts, products)
    again = partial(checkpoint, use_reentrant=False, context_fn=chosen)
    for block in some:
        block.gradient_checkpointing, block._gradient_checkpointing_func = True, again
'''

RECOMPUTE_NORMS = '''
def recompute_norms(model):
    """Compute norms again in the backward pass; they keep their input only."""
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    for norm in model.modules():
        if type(norm).__name__.endswith("Norm"):
            norm.forward = partial(again, norm.forward)
'''

CHUNKED_LOSS = '''
def chunked_cross_entropy(hidden, labels, head, chunks):
    """Return the mean loss, computed in pieces: the logits of all tokens never exist at once."""

    def loss_of_piece(some, right):
        return cross_entropy(head(some).float(), right, reduction="sum")

    size = -(-len(labels) // chunks)
    pieces = zip(hidden.split(size), labels.split(size))
    total = sum(checkpoint(loss_of_piece, *piece, use_reentrant=False) for piece in pieces)
    return total / len(labels)
'''
