// The row of buttons over the curves.

class WbControls {
  constructor(view) {
    this.view = view;
    this.root = wbElement("div", "wb-controls");
  }

  // With each message about the curves: the head, and what is new.
  update(content) {}

  close() {}
}

