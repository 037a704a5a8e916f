// SPDX-License-Identifier: Apache-2.0

// Package eventtest is for tests of what writes events.
package eventtest

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// Schema is event.Schema, compiled. Times and their zones are checked as well.
var Schema = sync.OnceValues(func() (*jsonschema.Schema, error) {
	document, err := jsonschema.UnmarshalJSON(bytes.NewReader(event.Schema))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("events.json", document); err != nil {
		return nil, err
	}
	return c.Compile("events.json")
})

// Decode is event.Decode of a line that has to fit the schema.
func Decode(line []byte) (event.Event, error) {
	schema, err := Schema()
	if err != nil {
		return nil, err
	}
	object, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", line, err)
	}
	if err := schema.Validate(object); err != nil {
		return nil, fmt.Errorf("%s: %w", line, err)
	}
	return event.Decode(line)
}
