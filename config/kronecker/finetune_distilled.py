# finetune.py, with the logits of the original model as a second target.
#
#   python train.py config/kronecker/finetune_distilled.py --distill_from=gpt2
#
# Loss and time: not measured yet.

include('finetune.py')

distill_from = 'gpt2'
distill_weight = 0.5
out_dir = 'out/kronecker-81m-distilled'
