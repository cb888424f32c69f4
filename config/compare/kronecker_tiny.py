# A compression comparison that takes minutes on a CPU: kronecker_gutenberg.py with a model of 2 layers. It shows how
# such a comparison works, and says nothing about models that are worth training.
#
#   python compare.py config/compare/kronecker_tiny.py

claim = 'Trained on for as many tokens, {arm} has a lower loss than {baseline} (demo, tiny model)'
common = (
    'config/gpt2.py --dataset=shakespeare_char --block_size=64 --batch_size=8 --gradient_accumulation_steps=1'
    ' --n_layer=2 --n_embd=64 --n_head=4 --learning_rate=1e-3 --min_lr=1e-4 --warmup_iters=10 --max_iters=60'
    ' --lr_decay_iters=60 --eval_interval=20 --eval_iters=10 --device=cpu'
)
_cut = 'transfer.py factorize --checkpoint={source} --linear=kronecker --kronecker_shape=128,32'
steps = dict(
    source='--learning_rate=3e-3 --min_lr=3e-4 --max_iters=300 --lr_decay_iters=300',
    nearest=f'{_cut} --init=nearest',
    learned=f'{_cut} --init=nearest --distill_iters=20',
)
arms = dict(
    dense='--init_from={source}',
    vanloan='--init_from={nearest}',
    distilled='--init_from={learned}',
    logits='--init_from={nearest} --distill_from={source}',
)
learning_rates = (1e-3, 3e-3)
sweep_seeds = 1
extend = 1
seeds = 2
looks = False  # a demonstration with few seeds
tasks = 'val'
bench = False
cluster = 'pool'
