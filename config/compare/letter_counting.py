# The letter counting of small-to-large transfer, with the controls that it lacked (toys/letter_counting.py has the
# methods). Every arm has its own best learning rate; figures are after the last epoch, with 25 random seeds.
#
#   python compare.py config/compare/letter_counting.py --cluster=pool --jobs=2     letter_counting_seed.py: the author's rate
#
# It computes in float64, so it needs a GPU that is fast at that (A100, H100): 430 seconds of an H100. The two largest
# sizes of that work are in letter_counting_large.py. The result (results/README.md): at size 256 padding with the
# identity helps, whether the small model was trained or not. At other sizes the spread over random seeds hides it.

script = 'toys/letter_counting.py'
claim = 'Letter counting, every learning rate tuned: {arm} makes fewer errors than {baseline} after 50 epochs'
note = (
    'The small model, where there is one, is trained for 20 of the 50 epochs, at half the width. random_onehot: padded like'
    ' onehot, from a small model that was not trained; all: every matrix of the small model, not only those of attention.'
)
arms = dict(
    scratch='',
    onehot='--method=onehot',
    double='--method=double',
    random_onehot='--method=random_onehot',
    all='--method=all',
)
sizes = {str(d): f'--d_model={d}' for d in (64, 128, 256)}
metric = 'val_error'  # % of the characters of the dev strings
center = 'median'  # some seeds learn the task, others do not: the mean lies between them, where no run does
worth = 0.5
learning_rates = (1e-4, 3e-4, 1e-3, 3e-3)
sweep_seeds = 3
seeds = 25
looks = False  # from before docs/protocol.md: all seeds at once, the rate of the lowest mean
match = 'tokens'  # the small model's 20 epochs count like any others, though they cost less
