"""Pieces of the training script that make an optimizer: torch's, or one that is written out."""

from __future__ import annotations

UPDATES = '''
class {name}(torch.optim.Optimizer):
    """{what}"""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, group)

    @torch.no_grad()
    def update(self, p, group):
        state, rate = self.state[p], group["lr"]
        step = state["step"] = state.get("step", 0) + 1
{body}'''

PIECES = """\
        for start in range(0, p.numel(), PIECE):
            part = slice(start, start + PIECE)
            weight, grad = p.view(-1)[part].float(), p.grad.reshape(-1)[part].float()
{rule}            write(p.view(-1)[part], weight, step)
"""

MOMENTS = """\
        if step == 1:
            for name in {names}:
                state[name] = torch.zeros(p.numel(), device=p.device)
"""

RULES = {
    "adamw": """\
            mean, square = state["mean"][part], state["square"][part]
            mean.lerp_(grad, 1 - 0.9)
            square.mul_(0.999).addcmul_(grad, grad, value=1 - 0.999)
            scale = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
            weight.mul_(1 - rate * group["weight_decay"])
            weight.addcdiv_(mean, scale, value=-rate / (1 - 0.9**step))
            del scale, grad
""",
    "lion": """\
            mean = state["mean"][part]
            weight.mul_(1 - rate * group["weight_decay"])
            weight.add_(mean.lerp(grad, 1 - 0.9).sign_(), alpha=-rate)
            mean.lerp_(grad, 1 - 0.99)
            del grad
""",
    "sgd": """\
            weight.add_(grad, alpha=-rate)
            del grad
""",
}
"""How each optimizer changes a piece of a weight by its gradient, all in fp32."""

MOMENT_NAMES = {"adamw": ("mean", "square"), "lion": ("mean",), "sgd": ()}

ADAFACTOR = """\
        weight, grad, share = p.float(), p.grad.float(), step**-0.8
        square = grad.square()
        if p.ndim >= 2:
            row = average(state, "row", square.mean(-1, keepdim=True), share)
            column = average(state, "column", square.mean(-2, keepdim=True), share)
            square = (row @ column).div_(row.mean(-2, keepdim=True).clamp_min_(1e-30))
        else:
            square = average(state, "square", square, share).clone()
        change = square.clamp_min_(1e-30).rsqrt_().mul_(grad)
        change.div_(change.square().mean().sqrt().clamp_min_(1.0))
        change.mul_(weight.square().mean().sqrt().clamp_min_(1e-3) * min(rate, step**-0.5))
        weight = weight.sub_(change).view(-1)
        for start in range(0, p.numel(), PIECE):
            part = slice(start, start + PIECE)
            write(p.view(-1)[part], weight[part], step)


def average(state, name, value, share):
    return state.setdefault(name, torch.zeros_like(value)).lerp_(value, share)
"""

WRITE_ROUNDED = '''

noise = {}


def write(target, value, step):
    """Round fp32 values to 16 bits by chance, so that many small changes add up."""
    if step not in noise:
        chance = torch.Generator(target.device).manual_seed(step)
        noise.clear()
        noise[step] = torch.rand(PIECE, generator=chance, device=target.device)
    drawn = noise[step][: len(value)]
    value.view(torch.int32).add_((drawn * 2**16).int()).bitwise_and_(-(2**16))
    target.copy_(value)
'''

WRITE_PLAIN = """

def write(target, value, step):
    target.copy_(value)
"""

OPTIMIZER = """
trained = [p for p in model.parameters() if p.requires_grad]
{narrow}matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim < 2]
groups = [{{"params": matrices, "weight_decay": {decay}}}, {{"params": vectors, "weight_decay": 0}}]
optimizer = {kind}([group for group in groups if group["params"]], {options})
groups = optimizer.param_groups
owners.append(optimizer)
"""

NARROW_GRADIENTS = """\
for p in trained:
    p.grad_dtype = torch.bfloat16
"""

ONE_EACH = """
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = {{
    p: {kind}([{{"params": [p], "weight_decay": {decay} if p.ndim > 1 else 0.0}}], {options})
    for p in trained
}}
groups = [one.param_groups[0] for one in optimizer.values()]
owners += optimizer.values()
"""

IN_BACKWARD = '''
def update_in_backward(parameters, update):
    """Clip each gradient by its own norm, update its parameter, and drop it, once it is there."""

    @torch.no_grad()
    def act(p):
        norm = torch.linalg.vector_norm(p.grad, dtype=torch.float32)
        p.grad.mul_((1.0 / (norm + 1e-6)).clamp_max_(1.0))
        update(p)
        p.grad = None

    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(act)
'''
