"""The experiment on iteration: arms of equally many images, their test by the referee, the verdict and the page."""
