// The same module for `import`: one instance serves both kinds of importers.

import * as keyhatch from "./index.js";

export * from "./index.js";
export default keyhatch;
