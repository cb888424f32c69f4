# Block Tensor-Train with its factors' RMS capped ("normalised BTT").
#
#   python train.py config/structured/btt_norm.py
#   python train.py config/structured/btt_norm.py config/structured/gutenberg.py
#
# The twin of shakespeare_char.py, all else alike. Shape and parameters are printed at the start. Loss: not measured yet.

include('../shakespeare_char.py')

linear = 'btt'
structured_norm = True
out_dir = out_dir.replace('shakespeare-char', 'structured/btt_norm')
wandb_run_name = 'btt_norm'
