# Growth at 51M parameters and 20M tokens: 8 layers 512 wide, GPT-2's vocabulary. At this budget the small model alone
# is ahead of the large one (results/README.md), so this says nothing about growing; that would need more iterations.
#
#   python compare.py config/compare/growth_gutenberg.py --jobs=5
#   python compare.py --show=results/growth_gutenberg               the log of an earlier, unfinished run of it, one seed

claim = 'After as many tokens, {arm} has a lower loss than {baseline}'
name = 'growth_gutenberg_seeds'
common = (
    'config/gpt2.py --n_layer=8 --n_embd=512 --n_head=8 --batch_size=16 --gradient_accumulation_steps=1'
    ' --learning_rate=1.2e-3 --min_lr=1.2e-4 --warmup_iters=50 --max_iters=1200 --lr_decay_iters=1200'
    ' --eval_interval=100 --eval_iters=10 --always_save_checkpoint=false'
)
_source = '--min_lr=1.2e-3 --max_iters=300 --lr_decay_iters=300'  # a constant rate
steps = dict(narrow=f'--n_embd=256 --n_head=4 {_source}', shallow=f'--n_layer=4 {_source}')
_from = '--init_from=transfer --transfer_from'
_clone = f'{_from}={{narrow}} --transfer_method=clone'
arms = {
    'scratch': '',
    'alone': '--n_embd=256 --n_head=4 --max_iters=3046 --lr_decay_iters=3046',  # for the FLOPs of scratch
    'stack': f'{_from}={{shallow}} --transfer_method=stack',
    'zero_block': f'{_from}={{shallow}} --transfer_method=zero_block',
    'interleave': f'{_from}={{shallow}} --transfer_method=interleave',
    'clone-1': f'{_clone} --transfer_noise=1',
    'clone-2': f'{_clone} --transfer_noise=2',
}
learning_rates = dict(scratch=(6e-4, 1.2e-3, 2.4e-3)) | {k: 'scratch' for k in [*arms, *steps] if k != 'scratch'}
horizons = dict.fromkeys(arms, (0.6, 0.8)) | dict(scratch=(0.6, 0.8, 1), alone=(1,))
mismatch = dict(alone='it has the FLOPs of scratch')
sweep_seeds = 2
seeds = 3
looks = False  # from before docs/protocol.md: all seeds at once, the rate of the lowest mean
