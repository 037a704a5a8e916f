// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
	"golang.org/x/time/rate"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/event"
)

// errNoJournal means that there is nobody to send events to.
var errNoJournal = errors.New("systemd's journal does not listen (/run/systemd/journal/socket): is systemd-journald running?")

// journalOutput sends events to systemd's journal, with their properties as fields.
type journalOutput struct{ warn rate.Sometimes }

func newJournalOutput() *journalOutput { return &journalOutput{rate.Sometimes{Interval: time.Second}} }

func (o *journalOutput) write(e event.Event) {
	message, priority, fields := journalEntry(e)
	if err := journal.Send(message, priority, fields); err != nil {
		o.warn.Do(func() {
			slog.Warn("an event was not sent to the journal; the work goes on", "event", e.Kind(), "error", err)
		})
	}
}

// journalEntry returns an event as the journal has it. What an event does not have is no field.
func journalEntry(e event.Event) (message string, priority journal.Priority, fields map[string]string) {
	p := event.PropertiesOf(e)
	end := func(a netip.AddrPort) string {
		if !a.IsValid() {
			return ""
		}
		return a.String()
	}
	line, _ := json.Marshal(e) // what has no JSON is written nowhere
	fields = map[string]string{
		"SYSLOG_IDENTIFIER": "earlydrop",
		"EARLYDROP_EVENT":   p.Kind, "EARLYDROP_ID": event.IDOf(e).String(), "EARLYDROP_INTERFACE": p.Interface, "EARLYDROP_CLASS": strings.Join(p.Classes, " "),
		"EARLYDROP_RULE": p.Rule, "EARLYDROP_DECISION": p.Decision, "EARLYDROP_DETECTED": p.Detected, "EARLYDROP_PROTO": p.Proto,
		"EARLYDROP_SRC": end(p.Src), "EARLYDROP_DST": end(p.Dst), "EARLYDROP_JSON": string(line),
	}
	for name, value := range fields {
		if value == "" {
			delete(fields, name)
		}
	}
	message, priority = e.Kind(), journal.PriInfo
	switch e := e.(type) {
	case *event.Verdict:
		message = e.Text(false)
		if e.Detected {
			priority = journal.PriNotice
		}
	case *event.LimitReached, *event.DeviceFailed:
		priority = journal.PriWarning
	case *event.Reloaded, *event.ModeChanged, *event.Audit:
		priority = journal.PriNotice
	}
	if text, ok := e.(interface{ Text() string }); ok {
		message = text.Text()
	}
	return message, priority, fields
}
