# letter_counting.py at the author's two largest sizes: two arms and five seeds, for what a GPU does in minutes. 190
# seconds of an H100. All of it: --seeds=25 --sweep_seeds=3, with letter_counting.py's arms and rates.
#
#   python compare.py config/compare/letter_counting_large.py --cluster=pool --jobs=2

include('letter_counting.py')
arms = dict(scratch='', onehot='--method=onehot')
sizes = {str(d): f'--d_model={d}' for d in (512, 1024)}
learning_rates = (1e-4, 3e-4, 1e-3)
sweep_seeds = 1
extend = 1
seeds = 5
