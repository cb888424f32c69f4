# Do fewer parameters overfit less? Krony-PT says so of 4.3M parameters against 10.7M on Tiny Shakespeare. nanoGPT's model is compared
# with the same model with every MLP matrix a Kronecker product, at three lengths of training. The rate falls to 0; each arm
# has its own best rate at each length.
#
#   python compare.py config/compare/kronecker_shakespeare.py --cluster=pool --jobs=8
#
# About 180 runs of 4 to 30 s, 40 minutes of an H200 with six at a time; --only=i1000,i2500 takes 16 of them. Overfitting means that the
# loss rises from one length to the next: it does not up to 2,500 iterations. The third arm, a narrower dense model with about as
# many parameters, shows whether the products matter or only the size: at 2,500 iterations it is the best of the three.

claim = 'Each at its own best rate, {arm} has a lower loss on Tiny Shakespeare than {baseline}'
note = (
    "nanoGPT's Shakespeare model by characters: dense (10.6M parameters), every MLP matrix one Kronecker product (4.4M), and dense"
    ' but narrower (4.2M). A size is the number of iterations, at whose end the rate is 0.'
)
common = 'config/shakespeare_char.py --min_lr=0 --eval_iters=0 --save_checkpoint=false'
arms = dict(
    dense='',
    kronecker='--linear=kronecker --linear_layers=mlp --kronecker_shape=512,128',
    narrow='--n_embd=240',
)
sizes = {
    f'i{n}': f'--max_iters={n} --lr_decay_iters={n} --warmup_iters=100 --eval_interval={n // 2}'
    for n in (1000, 2500, 5000)
}
learning_rates = (1e-3, 2e-3, 4e-3)
seeds = 8
worth = 0.01
match = 'tokens'
bench = False
