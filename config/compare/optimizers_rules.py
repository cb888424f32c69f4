# How far should the factors of a product move in a step of Muon? Three rules (step_rule) for three parameterizations of the
# MLPs of nanoGPT's Shakespeare model, at three widths, 250 iterations; each arm at its own best rate.
#
#   python compare.py config/compare/optimizers_rules.py --only=k_384,btt_384,monarch_384 --cluster=pool --jobs=6
#
# A size is a parameterization and a width. The best rates over the widths say which rule carries a rate from a narrow model
# to a wide one. About 450 runs of seconds each on a GPU.

claim = 'Each at its own best rate, {arm} has a lower loss on Tiny Shakespeare after 250 iterations than {baseline}'
note = (
    "nanoGPT's Shakespeare model by characters under Muon, 250 iterations, warm-up 25, cosine to 0; the whole validation"
    ' split. A size is what the MLP matrices are and the width: products with an inner width of 5.2 times the width (k), or'
    ' about a third of the dense parameters. An arm is the rule for the step of the factors (docs/optimizers.md).'
)
common = (
    '--max_iters=250 --lr_decay_iters=250 --warmup_iters=25 --min_lr=0 --eval_interval=125 --eval_iters=0'
    ' --save_checkpoint=false'
)
_muon = 'config/shakespeare_char.py --optimizer=muon --linear_layers=mlp'
arms = dict(factor=_muon, composed=f'{_muon} --step_rule=composed', product=f'{_muon} --step_rule=product')


def _size(linear, width):
    return f'--linear={linear} --n_embd={width} --n_head={width // 64}'


sizes = {}
for _width in (384, 256, 1024):
    sizes |= {
        f'k_{_width}': _size(f'expanded --expansion={2000 * _width // 384}', _width),
        f'btt_{_width}': _size('btt', _width),
        f'monarch_{_width}': _size('monarch', _width),
    }
learning_rates = dict.fromkeys(arms, (4e-3, 8e-3, 1.6e-2))  # compare.py adds more where the best one is at an edge
seeds = 8
worth = 0.02
match = 'tokens'
bench = False
