"""Where do the methods come from? Full references by the short form that texts use: "Guo et al. 2017"."""

from __future__ import annotations

import re
from collections.abc import Iterable

REFERENCES: dict[str, str] = {
    "Ba et al. 2016": "J. L. Ba, J. R. Kiros, G. E. Hinton: Layer Normalization. arXiv:1607.06450, 2016.",
    "Berta et al. 2025": "E. Berta, D. Holzmüller, M. I. Jordan, F. Bach: Rethinking Early Stopping: Refine, Then "
    "Calibrate. arXiv:2501.19195, 2025.",
    "Brier 1950": "G. W. Brier: Verification of Forecasts Expressed in Terms of Probability. Monthly Weather Review "
    "78, 1950.",
    "Charoenphakdee et al. 2021": "N. Charoenphakdee, J. Vongkulbhisal, N. Chairatanakul, M. Sugiyama: On Focal Loss "
    "for Class-Posterior Probability Estimation: A Theoretical Perspective. CVPR 2021.",
    "Goyal et al. 2017": "P. Goyal et al.: Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour. "
    "arXiv:1706.02677, 2017.",
    "Guo et al. 2017": "C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger: On Calibration of Modern Neural Networks. ICML "
    "2017.",
    "He et al. 2015": "K. He, X. Zhang, S. Ren, J. Sun: Delving Deep into Rectifiers. ICCV 2015.",
    "Hendrycks and Gimpel 2016": "D. Hendrycks, K. Gimpel: Gaussian Error Linear Units. arXiv:1606.08415, 2016.",
    "Ioffe and Szegedy 2015": "S. Ioffe, C. Szegedy: Batch Normalization: Accelerating Deep Network Training by "
    "Reducing Internal Covariate Shift. ICML 2015.",
    "Karpathy 2019": "A. Karpathy: A Recipe for Training Neural Networks. 2019.",
    "King and Zeng 2001": "G. King, L. Zeng: Logistic Regression in Rare Events Data. Political Analysis 9, 2001.",
    "LeCun et al. 1998": "Y. LeCun, L. Bottou, G. B. Orr, K.-R. Müller: Efficient BackProp. Neural Networks: Tricks of "
    "the Trade, 1998.",
    "Lin et al. 2017": "T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár: Focal Loss for Dense Object Detection. "
    "ICCV 2017.",
    "Loshchilov and Hutter 2019": "I. Loshchilov, F. Hutter: Decoupled Weight Decay Regularization. ICLR 2019.",
    "Maas et al. 2013": "A. L. Maas, A. Y. Hannun, A. Y. Ng: Rectifier Nonlinearities Improve Neural Network Acoustic "
    "Models. ICML 2013.",
    "McNemar 1947": "Q. McNemar: Note on the Sampling Error of the Difference Between Correlated Proportions or "
    "Percentages. Psychometrika 12, 1947.",
    "Menon et al. 2021": "A. K. Menon et al.: Long-tail Learning via Logit Adjustment. ICLR 2021.",
    "Mukhoti et al. 2020": "J. Mukhoti et al.: Calibrating Deep Neural Networks using Focal Loss. NeurIPS 2020.",
    "Naeini et al. 2015": "M. P. Naeini, G. F. Cooper, M. Hauskrecht: Obtaining Well Calibrated Probabilities Using "
    "Bayesian Binning. AAAI 2015.",
    "Niculescu-Mizil and Caruana 2005": "A. Niculescu-Mizil, R. Caruana: Predicting Good Probabilities with Supervised "
    "Learning. ICML 2005.",
    "Pascanu et al. 2013": "R. Pascanu, T. Mikolov, Y. Bengio: On the Difficulty of Training Recurrent Neural "
    "Networks. ICML 2013.",
    "Platt 1999": "J. C. Platt: Probabilistic Outputs for Support Vector Machines and Comparisons to Regularized "
    "Likelihood Methods. Advances in Large Margin Classifiers, 1999.",
    "Pleiss et al. 2020": "G. Pleiss, T. Zhang, E. Elenberg, K. Q. Weinberger: Identifying Mislabeled Data using the "
    "Area Under the Margin Ranking. NeurIPS 2020.",
    "Saerens et al. 2002": "M. Saerens, P. Latinne, C. Decaestecker: Adjusting the Outputs of a Classifier to New a "
    "Priori Probabilities: A Simple Procedure. Neural Computation 14, 2002.",
    "Shorten and Khoshgoftaar 2019": "C. Shorten, T. M. Khoshgoftaar: A Survey on Image Data Augmentation for Deep "
    "Learning. Journal of Big Data 6, 2019.",
    "Smith 2017": "L. N. Smith: Cyclical Learning Rates for Training Neural Networks. WACV 2017.",
    "Srivastava et al. 2014": "N. Srivastava et al.: Dropout: A Simple Way to Prevent Neural Networks from "
    "Overfitting. JMLR 15, 2014.",
    "Szegedy et al. 2016": "C. Szegedy et al.: Rethinking the Inception Architecture for Computer Vision. CVPR 2016.",
    "Tibshirani 1996": "R. Tibshirani: Regression Shrinkage and Selection via the Lasso. Journal of the Royal "
    "Statistical Society B 58, 1996.",
    "Toneva et al. 2019": "M. Toneva et al.: An Empirical Study of Example Forgetting during Deep Neural Network "
    "Learning. ICLR 2019.",
    "Wilson 1927": "E. B. Wilson: Probable Inference, the Law of Succession, and Statistical Inference. Journal of the "
    "American Statistical Association 22, 1927.",
    "Zhang and Sabuncu 2018": "Z. Zhang, M. R. Sabuncu: Generalized Cross Entropy Loss for Training Deep Neural "
    "Networks with Noisy Labels. NeurIPS 2018.",
}

# Behind every report with measured logits: quantity and short form.
METHODS: dict[str, str] = {
    "one temperature (T)": "Guo et al. 2017",
    "NLL after one temperature (refined NLL)": "Berta et al. 2025",
    "expected calibration error (ECE)": "Naeini et al. 2015",
    "reliability diagram": "Niculescu-Mizil and Caruana 2005",
    "its intervals": "Wilson 1927",
    "Brier score": "Brier 1950",
    "margin": "Pleiss et al. 2020",
    "test of the flips": "McNemar 1947",
}


def cited(texts: Iterable[str]) -> list[str]:
    """Full references of the short forms that occur in texts, in alphabetical order."""
    # "Mukhoti et al. (2020)" and "Wilson, 1927" are the same forms with other punctuation.
    whole = re.sub(r"[(),]", "", "\n".join(texts))
    return [full for short, full in REFERENCES.items() if short in whole]
