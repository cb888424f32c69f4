# Is the 3x MLP worth its time? 124M parameters, 100M tokens of Gutenberg in GPT-2's vocabulary, the rate falls to 0.
#
#   python compare.py config/compare/mlp3x_gutenberg.py --cluster=pool --jobs=1
#
# A job for H100s: 4 minutes a run; 27 runs of the sweep and at least 20 that decide (results/prices.md plans fewer). Equal
# tokens; FLOPs and seconds to the target are in the table. The model of the work's code has its own sweep, too.

claim = 'From the same 100M tokens, each at its own best rate, {arm} has a lower loss on Gutenberg than {baseline}'
note = (
    'd12: 12 layers, 768 wide, MLP factor 4. coded: factor 3 and nothing else changed. d8_mlp2x: 8 layers, 1,024 wide, factor'
    ' 2. 65,536 tokens a step, 1,526 steps, warm-up 5%, cosine to 0.'
)
common = (
    '--dataset=gutenberg --data_order=permutation --batch_size=32 --gradient_accumulation_steps=2 --max_iters=1526'
    ' --lr_decay_iters=1526 --warmup_iters=76 --min_lr=0 --eval_interval=218 --eval_iters=0 --log_interval=20'
    ' --save_checkpoint=false'
)
arms = dict(d12='config/d12.py', d8_mlp2x='config/d8_mlp2x.py', coded='config/d12_mlp3x_768.py')
learning_rates = (7e-4, 1.4e-3, 2.8e-3)
seeds = 6
worth = 0.01
match = 'tokens'
