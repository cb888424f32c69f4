# Does growing in depth pay if the source grows late? A warmup-stable-decay schedule allows that, as its rate is constant until
# the end. A model of 6 layers is stacked from sources of 1, 2 and 3 layers, with the FLOPs of the model from scratch, the
# source's included. Gutenberg in a vocabulary of its own, 256 wide.
#
#   python compare.py config/compare/growth_wsd.py --cluster=pool --jobs=4
#
# scratch trains for 3,600 steps. A source trains at the constant rate. Then the grown model gets the rest of the FLOPs; its rate
# decays over the last 720 steps. stack: half the layers, a quarter of the steps, as in growth_small. The _late arms spend half
# of all FLOPs on the source. scratch and stack are swept; sources take the rate of scratch, the other arms that of stack.
# 72 runs took 11 minutes on two H200s, beside others. stack ends 0.041 below scratch and half_late 0.024; two_late is level, one_late
# far behind (docs/growth.md).

claim = 'On the FLOPs of the run from scratch, its source included, {arm} has a lower loss on Gutenberg than {baseline}'
note = '6 layers, 256 wide, BPE of 4,096, 59M tokens from scratch; warm-up 100, constant rate, linear to 0 over the last 720 steps.'
common = (
    'config/gpt2.py --n_layer=6 --n_embd=256 --n_head=4 --batch_size=64 --gradient_accumulation_steps=1 --bias=false'
    ' --block_size=256 --dataset=gutenberg_bpe --schedule=wsd --min_lr=0 --warmup_iters=100 --wsd_decay_iters=720'
    ' --max_iters=3600 --lr_decay_iters=3600 --eval_interval=180 --eval_iters=0 --log_interval=20'
    ' --always_save_checkpoint=false'
)


def _flops(layers):  # per token: 6 for each parameter of 12 n^2 a layer and of the head, and attention over 256 tokens
    return layers * (72 * 256**2 + 12 * 256 * 256) + 6 * 4096 * 256


def _source(layers, iters):
    return f'--n_layer={layers} --max_iters={iters} --lr_decay_iters={iters} --wsd_decay_iters=0'


def _grown(layers, iters):  # what is left of the 3,600 steps of 6 layers after `iters` steps of the source
    left = round(3600 - iters * _flops(layers) / _flops(6))
    return f'--max_iters={left} --lr_decay_iters={left} --init_from=transfer --transfer_method=stack'


_late = {layers: round(1800 * _flops(6) / _flops(layers)) for layers in (1, 2, 3)}  # half of all FLOPs
steps = dict(half=_source(3, 900), half_long=_source(3, _late[3]), two=_source(2, _late[2]), one=_source(1, _late[1]))
arms = dict(
    scratch='',
    stack=f'{_grown(3, 900)} --transfer_from={{half}}',
    half_late=f'{_grown(3, _late[3])} --transfer_from={{half_long}}',
    two_late=f'{_grown(2, _late[2])} --transfer_from={{two}}',
    one_late=f'{_grown(1, _late[1])} --transfer_from={{one}}',
)
learning_rates = dict.fromkeys(('scratch', 'stack'), (1.4e-3, 2.4e-3, 4e-3))
learning_rates |= dict.fromkeys(steps, 'scratch') | dict.fromkeys(('half_late', 'two_late', 'one_late'), 'stack')
seeds = 8
worth = 0.02
match = 'flops'
bench = False
