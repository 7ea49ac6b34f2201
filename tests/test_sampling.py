import torch
from gaussian_prior import GaussianPrior

from dream4d.cameras import orbit
from dream4d.priors.sampling import sample


def test_samples_of_a_world_of_one_colour_are_that_colour():
    colour = torch.tensor([0.2, 0.6, 0.9])
    prior = GaussianPrior(colour)
    cameras = orbit(*torch.zeros(4, 2))
    images = sample(prior, ["a", "b"], cameras, (4, 4, 3), generator=torch.Generator().manual_seed(0), scale=1.0)
    assert images.shape == (2, 4, 4, 3)
    torch.testing.assert_close(images.mean(dim=(0, 1, 2)), colour, atol=0.05, rtol=0)
