# letter_counting.py at the two largest sizes of small-to-large transfer. Only two arms and five random seeds, so that
# it takes 190 seconds of an H100. For all of it: --seeds=25 --sweep_seeds=3, with the arms and rates of
# letter_counting.py.
#
#   python compare.py config/compare/letter_counting_large.py --cluster=pool --jobs=2

include('letter_counting.py')
arms = dict(scratch='', onehot='--method=onehot')
sizes = {str(d): f'--d_model={d}' for d in (512, 1024)}
learning_rates = (1e-4, 3e-4, 1e-3)
sweep_seeds = 1
extend = 1
seeds = 5
