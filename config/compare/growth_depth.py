# A closer look at growing in depth: growth_small.py's best arms and cheaper sources, over three lengths of training.
#
#   python compare.py config/compare/growth_depth.py --cluster=pool --jobs=8      on a GPU; one seed: about 8 minutes of an H100
#   python compare.py --show=results/growth_depth                                 the log of an earlier run of it, another seed

include('growth_small.py')
name = 'growth_depth_seeds'
_arms = ('scratch', 'alone', 'stack', 'stack-third', 'stack-staged', 'interleave', 'zero_block', 'stack-third-early')
arms = {k: arms[k] for k in (*_arms, 'stack-early', 'clone-2', 'random_lift-1')}
steps = {k: v for k, v in steps.items() if k not in ('narrow-early', 'random')}
learning_rates = {}  # that of growth_small.py's sweep
horizons = dict.fromkeys(arms, (0.4, 0.55, 0.75)) | dict(scratch=(0.4, 0.55, 0.75, 1), alone=(1,))
